"""What an editor completes on the package's objects is what the reference documents, and nothing else."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"^::: (?P<name>\S+)\n(?P<options>(?: {4}.*\n)*)", re.MULTILINE)
MEMBERS = re.compile(r"\b(?P<kind>members|inherited_members):(?P<names> *\[[^\]]*\]|(?:\n +- \w+)+)")
ENTRIES = {
    entry["name"]: {
        found["kind"]: set(re.findall(r"\w+", found["names"])) for found in MEMBERS.finditer(entry["options"])
    }
    for page in sorted(ROOT.glob("docs/reference/*.md"))
    for entry in ENTRY.finditer(page.read_text(encoding="utf-8"))
}
# A mixin has no base class; what it overrides is documented by the class that it stands before.
STANDS_BEFORE = dict.fromkeys(("BatchAttentionMixin", "SampleAttentionMixin"), ("transformers", "Trainer"))
# Its fields are another class's arguments.
ARGUMENTS_OF = {"Options": "batch_sampler_attn.BatchAttentionSchedule"}


def load(name):
    """The object of an entry; None where there is none, as without its framework."""
    module, _, own = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), own, None)
    except ImportError:
        return None


@functools.cache
def names_of_classes(*, with_trainers):
    """The entry of each class. Trainers take as long to import as all other tests of this file together."""
    entries = [name for name in ENTRIES if with_trainers or not is_trainer(name)]
    return {found: name for name in entries if inspect.isclass(found := load(name))}


def is_trainer(name):
    return name.startswith("batch_sampler_attn.trainers.")


BOTH = pytest.mark.parametrize("with_trainers", [False, pytest.param(True, marks=pytest.mark.slow)])


def is_ours(owner):
    return owner.__module__.partition(".")[0] == "batch_sampler_attn"


def sections(docstring):
    """What a docstring lists as attributes, or as arguments, of which attributes may be named after."""
    listed = re.findall(
        r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", f"{inspect.cleandoc(docstring or '')}\n", re.MULTILINE
    )
    return set(re.findall(r"^    (\w+):", "".join(listed), re.MULTILINE))


def set_on_instances(owner):
    """The public names that the methods of a class give its instances."""
    try:
        source = inspect.getsource(owner)
    except OSError:  # made by a function, of other classes
        return
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_stored and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


def public_names(owner):
    """What completion shows of a class and its instances, and which class of ours it comes from."""
    ours = [each for each in owner.__mro__ if is_ours(each)]
    others = [each for each in owner.__mro__ if not is_ours(each)]
    if owner.__name__ in STANDS_BEFORE:
        module, name = STANDS_BEFORE[owner.__name__]
        others.append(getattr(importlib.import_module(module), name))
    theirs = {name for each in others for name in dir(each)}
    for each in ours:
        fields = [field.name for field in dataclasses.fields(each)] if dataclasses.is_dataclass(each) else []
        for name in {*vars(each), *set_on_instances(each), *fields} - theirs:
            if not name.startswith("_"):
                yield name


def shown(owner, names):
    """The names that the reference shows of a class: in its entry, and in those of the classes that it is made from."""
    for each in owner.__mro__:
        if each not in names:
            continue
        yield from sections(each.__doc__)
        if each.__name__ in ARGUMENTS_OF:
            yield from sections(load(ARGUMENTS_OF[each.__name__]).__doc__)
        options = ENTRIES[names[each]]
        own = {name for name, member in vars(each).items() if inspect.getdoc(member)}
        yield from own & options["members"] if "members" in options else own
        inherited = {name for base in each.__mro__ for name, member in vars(base).items() if inspect.getdoc(member)}
        yield from options.get("inherited_members", set()) & inherited


@BOTH
def test_every_public_name_of_a_class_is_documented_in_the_reference(with_trainers):
    names = names_of_classes(with_trainers=with_trainers)
    assert len(names) > 25
    for owner, name in names.items():
        assert set(public_names(owner)) - set(shown(owner, names)) == set(), name


@BOTH
def test_the_reference_lists_no_member_that_is_not_there(with_trainers):
    for owner, name in names_of_classes(with_trainers=with_trainers).items():
        options = ENTRIES[name]
        listed = options.get("members", set()) | options.get("inherited_members", set())
        assert listed - {*dir(owner), *set_on_instances(owner)} == set(), name

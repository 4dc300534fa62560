"""What tells configurations of the same model and data apart, where they stand in one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.schema import Configuration

# They say nothing to a reader, or nothing that the fields that go with them do not say.
_UNSAID = ("schema_version", "parameters", "classes", "sha256", "channels_last")
_WORDINGS = {
    "train_images": "{:,} images",
    "test_images": "{:,} test images",
    "k": "K {:g}",
    "batch_size": "batches of {}",
    "learning_rate": "learning rate {:g}",
    "max_visits": "max_visits {}",
}


def base_name(configuration: Configuration) -> str:
    """Model and data, which most configurations are told by."""
    return f"{configuration.model} on {configuration.data.name}"


def tell_apart(configurations: Sequence[Configuration], folders: Sequence[str]) -> list[str]:
    """For each configuration, what is to stand behind its ``base_name``; empty where no other has that name.

    That is what differs among those of one name; where nothing that a reader understands does, or not in all of them,
    the folder's name, and at last the configuration's digest.

    Args:
        configurations: No two of them the same.
        folders: The name of the folder of each.
    """
    names = [base_name(each) for each in configurations]
    said = [""] * len(names)
    for name in dict.fromkeys(names):
        places = [place for place, each in enumerate(names) if each == name]
        for place, text in zip(places, _differences([configurations[place] for place in places]), strict=True):
            said[place] = text
    for further in (folders, [each.digest() for each in configurations]):
        # Spaces and line breaks are read alike.
        read = [" ".join(f"{name} {text}".split()) for name, text in zip(names, said, strict=True)]
        taken = Counter(read)
        said = [
            ", ".join(filter(None, (text, more))) if taken[whole] > 1 else text
            for whole, text, more in zip(read, said, further, strict=True)
        ]
    return said


def _differences(configurations: Sequence[Configuration]) -> list[str]:
    flat = [_flatten(each) for each in configurations]
    keys = dict.fromkeys(key for fields in flat for key in fields if key not in _UNSAID)
    differing = [key for key in keys if any(fields.get(key) != flat[0].get(key) for fields in flat)]
    return [", ".join(_in_words(key, fields[key]) for key in differing if key in fields) for fields in flat]


def _flatten(configuration: Configuration) -> dict[str, object]:
    """Every field by its name, those of the data and the model's options too; without what there is not."""
    fields = configuration.model_dump()
    data, options = fields.pop("data"), fields.pop("model_options")
    data["data"] = data.pop("name")
    limit = {"max_visits": fields.pop("max_visits") or "none"}
    return {name: value for name, value in {**data, **options, **fields, **limit}.items() if value is not None}


def _in_words(key: str, value: object) -> str:
    words = key.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"not {words}"
    if key == "epochs":
        return f"{value} epoch" if value == 1 else f"{value} epochs"
    return _WORDINGS.get(key, words + " {}").format(value)

"""Records as they are read, and the verdicts, pages and figures that are made of them."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy import stats

from benchmarks.errors import RecordsError
from benchmarks.reading import read_records
from benchmarks.report import markdown, paper, web
from benchmarks.report.__main__ import main
from benchmarks.report.claims import judge_claims
from benchmarks.report.comparisons import (
    accuracy_at_same_cost,
    accuracy_at_same_loss,
    overhead_before_convergence,
)
from benchmarks.report.document import Box, Document, Section, Table
from benchmarks.report.page import write_report
from benchmarks.report.results import read_experiments, variance
from benchmarks.report.statistics import (
    Verdict,
    accuracy_error,
    judge_above,
    judge_at_most,
    judge_gain,
    judge_range,
    sample,
    variance_error,
)
from benchmarks.schema import Epoch
from tests.benchmarks.cifar_helpers import run_benchmark, write_digits
from tests.benchmarks.report_records import Setting, write_records

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    options = ["--epochs", "2", "--seeds", "0", "1", "2", "--label-noise", "0", "3"]
    return run_benchmark(write_digits(folder / "digits"), folder / "out", *options)


@pytest.fixture
def copied(out, tmp_path):
    """Records that may be spoiled."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("configuration.json", "runs.jsonl", "epochs.jsonl"):
        (folder / name).write_bytes((out / name).read_bytes())
    return folder


def edit(path, line, **changes):
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def drop(path, line):
    lines = path.read_text().splitlines()
    del lines[line]
    path.write_text("\n".join(lines) + "\n")


# Records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "epochs.jsonl").unlink(), "epochs.jsonl cannot be read"),
        (lambda folder: edit(folder / "epochs.jsonl", 4, accuracy="high"), "epochs.jsonl, line 5 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, accuracy=1.5), "line 1 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, surprise=1), "line 1 .* surprise"),
        (lambda folder: edit(folder / "runs.jsonl", 1, arm="magic"), "runs.jsonl, line 2 .* arm"),
        (lambda folder: edit(folder / "configuration.json", 0, schema_version=2), "schema"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, configuration="other"), "two configurations"),
        (lambda folder: edit(folder / "runs.jsonl", 0, configuration="other"), "two configurations"),
        (lambda folder: drop(folder / "epochs.jsonl", 0), "is missing"),
        (lambda folder: drop(folder / "epochs.jsonl", -1), "runs.jsonl says"),
        (lambda folder: drop(folder / "runs.jsonl", 0), "of which runs.jsonl does not know"),
        (lambda folder: (folder / "runs.jsonl").write_text((folder / "runs.jsonl").read_text() * 2), "two lines"),
    ],
)
def test_records_that_are_not_what_they_should_be_are_refused(copied, spoil, said):
    one_line = copied / "configuration.json"
    one_line.write_text(json.dumps(json.loads(one_line.read_text())))
    read_records(copied)
    spoil(copied)
    with pytest.raises(RecordsError, match=said):
        read_records(copied)
    with pytest.raises(SystemExit, match=r"^error: "):
        main([str(copied)])


def test_two_configurations_of_one_experiment_are_told_apart_by_what_differs(out, tmp_path):
    other = run_benchmark(out.parent / "digits", tmp_path / "out", "--k", "1.3", "--epochs", "1", "--arms", "baseline")
    alone = [read_experiments([folder])[0].name for folder in (out, other)]
    together = [experiment.name for experiment in read_experiments([out, other])]
    assert alone[0] == alone[1]
    assert together == [f"{alone[0]} (1 epochs, K 1.3)", f"{alone[0]} (2 epochs, K 0.7)"]
    write_report(read_experiments([out, other]), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert all(f"Claims: {name}" in text for name in together)


def test_the_same_run_does_not_count_twice(out, copied):
    with pytest.raises(RecordsError, match="give each run once"):
        read_experiments([out, copied])


def test_runs_of_one_configuration_from_two_folders_are_put_together(out, tmp_path):
    other = run_benchmark(out.parent / "digits", tmp_path / "out", "--epochs", "2", "--seeds", "7")
    (experiment,) = read_experiments([out, other])
    assert len(experiment.runs) == 2 * 3 * 4 + 4


def test_runs_that_are_not_finished_are_left_out_and_counted(copied):
    lines = (copied / "runs.jsonl").read_text().splitlines()
    for line in range(len(lines)):
        edit(copied / "runs.jsonl", line, is_finished=line > 0)
    (experiment,) = read_experiments([copied])
    assert (len(experiment.runs), experiment.unfinished) == (len(lines) - 1, 1)
    for line in range(len(lines)):
        edit(copied / "runs.jsonl", line, is_finished=False)
    with pytest.raises(RecordsError, match="no run of small_resnet on digits is finished"):
        read_experiments([copied])


# Statistics ------------------------------------------------------------------------------------------------

# Of points, not so small that their squares are 0.
NUMBERS = st.lists(st.floats(-1e3, 1e3).map(lambda number: round(number, 12)), min_size=2, max_size=8)


@given(NUMBERS)
def test_the_interval_is_that_of_scipys_paired_t_test(values):
    differences = sample(values)
    low, high = differences.interval
    if differences.deviation < 1e-9:
        assert (low, high) == (pytest.approx(values[0], abs=1e-6), pytest.approx(values[0], abs=1e-6))
        return
    expected = stats.ttest_rel(values, [0.0] * len(values)).confidence_interval(0.95)
    assert (low, high) == (
        pytest.approx(expected.low, rel=1e-6, abs=1e-9),
        pytest.approx(expected.high, rel=1e-6, abs=1e-9),
    )


def test_the_papers_own_variances_come_from_its_counts():
    assert [variance(row.wrong_predictions) for row in paper.TABLE_2] == pytest.approx([11144.36, 9163.96], abs=1e-9)
    assert [row.variance for row in paper.TABLE_2] == [11144.36, 9163.96]


@pytest.mark.parametrize(
    ("values", "above", "gain"),
    [
        ([2.0, 2.5, 3.0], "holds", "holds"),
        ([0.9, 1.0, 1.1], "holds", "does not hold"),
        ([-0.1, 0.0, 0.1], "does not hold", "does not hold"),
        ([-3.0, -2.0, -1.0], "does not hold", "does not hold"),
        ([-2.0, 1.0, 4.0], "cannot be told", "cannot be told"),
        ([2.5, 2.6], "not enough runs", "not enough runs"),
        ([], "not enough runs", "not enough runs"),
    ],
)
def test_a_claim_of_a_gain_is_judged_by_its_interval(values, above, gain):
    assert judge_above(sample(values), least_gain=0.5) is Verdict(above)
    assert judge_gain(sample(values), claimed=2.0) is Verdict(gain)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([17.0, 18.0, 19.0], "holds"),
        ([12.0, 13.0, 14.0], "holds"),
        ([11.0, 11.1, 11.2], "does not hold"),
        ([30.0, 31.0, 32.0], "does not hold"),
        ([5.0, 17.0, 30.0], "cannot be told"),
        ([17.0], "not enough runs"),
    ],
)
def test_a_claim_of_a_range_is_judged_by_its_interval(values, said):
    assert judge_range(sample(values), least=15, most=20, widest=10) is Verdict(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([3.0, 3.5, 4.0], "holds"),
        ([0.0, 0.0, 0.0], "holds"),
        ([6.9, 8.9, 10.9], "cannot be told"),
        ([20.0, 21.0, 22.0], "does not hold"),
        ([1.0, 1.0], "not enough runs"),
    ],
)
def test_a_claim_of_at_most_so_much_is_judged_by_its_interval(values, said):
    assert judge_at_most(sample(values), most=5) is Verdict(said)


@pytest.mark.parametrize(
    ("values", "error", "above", "gain"),
    [
        ([2.0, 2.5, 3.0], 2.6, "cannot be told", "cannot be told"),
        ([2.0, 2.5, 3.0], 2.4, "holds", "holds"),
        ([1.5, 1.5, 1.5], 0.49, "holds", "does not hold"),
        ([1.5, 1.5, 1.5], 0.51, "holds", "holds"),
        ([0.0, 0.0, 0.0], 0.49, "does not hold", "does not hold"),
        ([0.0, 0.0, 0.0], 0.51, "cannot be told", "does not hold"),
        ([2.0, 2.5], 0.0, "not enough runs", "not enough runs"),
    ],
)
def test_the_interval_that_is_judged_reaches_at_least_as_far_as_the_sampling_error(values, error, above, gain):
    assert judge_above(sample(values), least_gain=0.5, sampling_error=error) is Verdict(above)
    assert judge_gain(sample(values), claimed=2.0, sampling_error=error) is Verdict(gain)


def test_an_interval_that_is_wider_than_the_sampling_error_is_judged_as_it_is():
    values = sample([-2.0, 1.0, 4.0])
    assert values.reach(1.0) == pytest.approx(stats.t.ppf(0.975, 2) * 3 / math.sqrt(3))
    assert values.reach(9.0) == 9.0


@given(st.integers(20, 1977), st.integers(3, 50))
def test_three_of_2000_test_images_more_never_hold_however_many_seeds_agree(right, seeds):
    accuracies = [right / 20, (right + 3) / 20]
    error = accuracy_error(accuracies, 2000)
    difference = sample([accuracies[1] - accuracies[0]] * seeds)
    assert judge_above(difference, least_gain=0.5, sampling_error=error) is not Verdict.HOLDS
    assert judge_gain(difference, claimed=2.0, sampling_error=error) is not Verdict.HOLDS


def test_the_sampling_error_of_accuracy_is_the_spread_over_test_sets():
    drawn = np.random.default_rng(0).binomial(2000, [0.9, 0.6], (40_000, 2)) / 20
    assert accuracy_error([90.0, 60.0], 2000) == pytest.approx(np.std(drawn[:, 1] - drawn[:, 0]), rel=0.02)


def test_the_sampling_error_of_the_variance_is_the_spread_over_test_sets():
    counts = [300, 500, 400, 900]
    drawn = np.random.default_rng(0).poisson(counts, (40_000, 4)).var(axis=1)
    assert variance_error(counts) == pytest.approx(np.std(drawn), rel=0.02)


# Doses and test sets ---------------------------------------------------------------------------------------

# Of every number of batches a share is repeated once in the last of 4 epochs; without chance in the accuracies.
PLAIN = Setting(epochs=4, batches=100, readings=("first",), noises=(0, 3), jitter=0, repeats_from=4, repeated_once=20)
OF_OVERHEAD = "Training takes 15 to 20 % longer (section 4.2 and conclusion)"
WITH_NOISE = "It is ahead with label noise too (section 4.5, figure 8)"


def verdicts(folder, setting):
    """By claim; each is judged once with one reading and two levels of noise."""
    found = judge_claims(read_experiments([write_records(folder, setting)]))
    assert len({finding.claim for finding in found}) == len(found)
    return {finding.claim: finding.verdict for finding in found}


def test_the_same_three_images_in_every_seed_do_not_hold_on_2000_and_do_on_2_million(tmp_path):
    # With 3 of 32 labels redrawn, half of the gain is left.
    three = PLAIN._replace(gain=0.003, seeds=tuple(range(12)))
    few = verdicts(tmp_path / "few", three._replace(images=(640, 2000)))
    many = verdicts(tmp_path / "many", three._replace(images=(640, 2_000_000)))
    assert few[WITH_NOISE] is Verdict.CANNOT_BE_TOLD
    assert many[WITH_NOISE] is Verdict.HOLDS


@pytest.mark.parametrize(
    ("repeated", "more_each_seed", "said"),
    [(3, 0, True), (4, 0, False), (3, 40, True), (0, 0, True), (4, 40, False)],
)
def test_below_one_repeat_in_a_hundred_batches_in_any_run_nothing_is_judged_but_the_time(
    tmp_path, repeated, more_each_seed, said
):
    # 4 of 400 batches are 1 %.
    setting = PLAIN._replace(repeated_once=repeated, more_each_seed=more_each_seed, gain=0.05)
    found = verdicts(tmp_path / "records", setting)
    assert found.pop(OF_OVERHEAD) is not Verdict.HARDLY_ANY_REPEATS
    assert len(found) >= 9
    assert {verdict is Verdict.HARDLY_ANY_REPEATS for verdict in found.values()} == {said}


def test_with_two_seeds_there_are_not_enough_runs_whatever_is_repeated(tmp_path):
    found = verdicts(tmp_path / "records", PLAIN._replace(seeds=(0, 1), repeated_once=0))
    assert set(found.values()) == {Verdict.NOT_ENOUGH_RUNS}


def test_the_dose_that_counts_is_that_of_the_runs_that_are_compared(tmp_path):
    """A seed without a baseline repeats nothing: only what is not compared with baselines is touched by it."""
    setting = PLAIN._replace(seeds=(0, 1, 2, 3), repeated_once=90, more_each_seed=-30, noises=(0,), gain=0.05)
    found = verdicts(tmp_path / "records", setting._replace(unfinished=(("baseline", None, 0, 3),)))
    little = {claim for claim, verdict in found.items() if verdict is Verdict.HARDLY_ANY_REPEATS}
    assert little == {claim for claim in found if claim.startswith("Not in the paper")}


# Comparisons -----------------------------------------------------------------------------------------------


def make_epochs(accuracies, losses=None, repeats=None, seconds=None):
    return [
        Epoch.model_construct(
            epoch=number + 1,
            accuracy=accuracy,
            train_loss=None if losses is None else losses[number],
            repeats=0 if repeats is None else repeats[number],
            batches=10,
            updates=10 + (0 if repeats is None else repeats[number]),
            seconds=1.0 if seconds is None else seconds[number],
        )
        for number, accuracy in enumerate(accuracies)
    ]


def test_accuracy_at_the_same_cost_takes_attentions_last_epoch_within_the_baselines_time():
    baseline = make_epochs([0.1, 0.2, 0.3, 0.4])
    attention = make_epochs([0.1, 0.3, 0.45, 0.6], repeats=[0, 5, 5, 5], seconds=[1, 1, 1, 1.5])
    # Updates: 10, 25, 40 of the baseline's 40; seconds: 3 of 4.
    assert accuracy_at_same_cost(baseline, attention, in_seconds=False) == pytest.approx(5)
    assert accuracy_at_same_cost(baseline, attention, in_seconds=True) == pytest.approx(5)
    assert accuracy_at_same_cost(baseline, baseline, in_seconds=True) == 0
    late = make_epochs([0.9], seconds=[9.0])
    assert np.isnan(accuracy_at_same_cost(baseline, late, in_seconds=True))


def test_accuracy_at_the_same_loss_compares_where_both_arms_have_been():
    baseline = make_epochs([0.1, 0.2, 0.3], losses=[3.0, 2.0, 1.0])
    attention = make_epochs([0.2, 0.4], losses=[2.0, 0.0])
    # At losses 2 to 1 the baseline has 0.2 to 0.3, and so has attention.
    assert accuracy_at_same_loss(baseline, attention) == pytest.approx(0)
    better = make_epochs([0.25, 0.35], losses=[2.0, 1.0])
    assert accuracy_at_same_loss(baseline, better) == pytest.approx(5)
    apart = make_epochs([0.5], losses=[0.5])
    assert np.isnan(accuracy_at_same_loss(baseline, apart))


def test_repeats_count_before_the_baseline_first_has_nearly_its_best_accuracy():
    baseline = make_epochs([0.5, 0.7, 0.96, 1.0])
    attention = make_epochs([0.5, 0.7, 0.9, 0.9], repeats=[0, 1, 9, 9])
    # Epoch 2 only: nothing can repeat in epoch 1, and epoch 3 has 96 % of the best.
    assert overhead_before_convergence(baseline, attention) == pytest.approx(10)
    assert np.isnan(overhead_before_convergence(make_epochs([1.0, 1.0]), make_epochs([1.0, 1.0], repeats=[0, 9])))


# The report ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a page, and the text in each kind of them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.inside, self.texts = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.inside.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        for tag in set(self.inside):
            self.texts[tag][-1] += data

    def values(self, tag, name):
        return [attributes[name] for each, attributes in self.elements if each == tag and name in attributes]


# A name that is a tag, a link, emphasis and the end of a cell.
HOSTILE = "<img src=x onerror=alert(1)>|*b*|[c](d)|`e`&lt;"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report's folder, of two experiments."""
    folder = tmp_path_factory.mktemp("hostile")
    settings = [PLAIN._replace(model=model, data=HOSTILE, classes=("<b>", "*c*", "d|e")) for model in ("one", "two")]
    paths = [write_records(folder / setting.model, setting) for setting in settings]
    main([*map(str, paths), "--out", str(folder / "report")])
    return folder / "report"


def read_markdown(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline_tokens(text):
    return [child for token in read_markdown(text) for child in token.children or []]


def test_the_page_holds_every_figure_and_asks_for_nothing_from_elsewhere(out, tmp_path, capsys):
    main([str(out), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "report.html").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    figures = [token.attrs["src"] for token in inline_tokens(text) if token.type == "image"]
    assert len(figures) == 8
    assert figures[0] == "forest.png"
    for name in figures:
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
    sources = Page(page).values("img", "src")
    assert len(sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<table>") == sum(token.type == "table_open" for token in read_markdown(text))
    assert "Claims" in capsys.readouterr().out


def test_the_page_fits_a_small_screen(hostile):
    page = Page((hostile / "report.html").read_text())
    viewports = [attributes["content"] for tag, attributes in page.elements if attributes.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]


def test_every_link_of_the_pages_contents_leads_to_a_title_and_every_title_has_one(hostile):
    page = Page((hostile / "report.html").read_text())
    titles = [attributes["id"] for tag, attributes in page.elements if tag in ("h2", "h3")]
    assert page.values("a", "href") == [f"#{title}" for title in titles]
    assert len(set(titles)) == len(titles) >= 10


def test_every_link_of_the_markdown_leads_to_a_title_as_github_names_it(out, tmp_path):
    main([str(out), "--out", str(tmp_path / "report")])
    titles, links, _ = read_links((tmp_path / "report" / "report.md").read_text())
    assert len(titles) >= 10
    assert links == [f"#{name_on_github(title)}" for title in titles]


def read_links(text):
    """The titles, where links lead, and the files of pictures."""
    tokens = read_markdown(text)
    titles = [
        "".join(child.content for child in token.children)
        for before, token in itertools.pairwise(tokens)
        if before.type == "heading_open" and before.tag != "h1"
    ]
    links = [token.attrs["href"] for token in inline_tokens(text) if token.type == "link_open"]
    return titles, links, [token.attrs["src"] for token in inline_tokens(text) if token.type == "image"]


def name_on_github(title):
    """Small letters, no punctuation but hyphens and underscores, and a hyphen for each space."""
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in "-_ ").replace(" ", "-")


def test_what_a_data_set_is_called_stays_text_on_the_page(hostile):
    page = Page((hostile / "report.html").read_text())
    assert page.values("img", "src").count("x") == 0
    assert not {"b", "script"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert f"Claims: one on {HOSTILE}" in page.texts["h3"]
    assert f"two on {HOSTILE}" in page.texts["td"]
    assert {"<b>", "*c*", "d|e"} <= set(page.texts["th"])
    assert [text for text in page.texts["figcaption"] if text.endswith(f", one on {HOSTILE}")]


def test_what_a_data_set_is_called_stays_text_in_the_markdown(hostile):
    text = (hostile / "report.md").read_text()
    tokens = read_markdown(text)
    raw = [token.content for token in tokens if token.type == "html_block"]
    assert raw
    assert {tag for block in raw for tag in re.findall(r"<(\w+)", block)} == {"details", "summary"}
    assert not [token for token in inline_tokens(text) if token.type == "html_inline"]
    cells = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert cells.count(f"one on {HOSTILE}") >= 10
    assert {"<b>", "*c*", "d|e"} <= set(cells)
    assert any(f"(one on {HOSTILE}; two on {HOSTILE})" in cell for cell in cells)
    emphasized = {token.content for token in inline_tokens(text) if token.type == "code_inline"}
    assert "e" not in emphasized


def test_a_reduced_experiment_says_so_above_its_claims(out, tmp_path):
    main([str(out), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    claims = text[text.index("### Claims: ") : text.index("### What a verdict takes")]
    said = "Reduced: small_resnet on digits, which the paper has not, 140 training images, 60 test images, 2 epochs, "
    assert said in claims
    assert "on a CPU" in claims[claims.index(said) : claims.index("| verdict |")]


def test_a_claim_without_records_has_no_verdict(out, tmp_path):
    main([str(out), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    claim = "Accuracy is up, by less, on CIFAR-100 (section 4.3)"
    assert f"| {claim} | - |\n" in text
    assert text.count(claim) == 1


def test_a_report_of_a_baseline_alone_has_its_table_and_no_verdict(out, tmp_path):
    alone = run_benchmark(out.parent / "digits", tmp_path / "out", "--arms", "baseline", "--epochs", "1")
    main([str(alone)])
    text = (alone / "report" / "report.md").read_text()
    assert "| small_resnet on digits | none | baseline | 3 |" in text
    assert not [verdict.value for verdict in Verdict if f"**{verdict.value}**" in text]
    assert not list((alone / "report").glob("*.png"))


# Names and numbers that nobody expects ----------------------------------------------------------------------


def test_brackets_in_a_name_do_not_end_a_link(hostile):
    titles, links, pictures = read_links((hostile / "report.md").read_text())
    assert links == [f"#{name_on_github(title)}" for title in titles]
    assert all((hostile / unquote(picture)).exists() for picture in pictures)


@pytest.mark.parametrize("name", ["_a_ b", "a __b__", "~~a~~ b"])
def test_a_name_is_not_emphasized(tmp_path, name):
    assert f"Claims: small_resnet on {name}" in read_links(make_report(tmp_path, PLAIN._replace(data=name)))[0]


def make_report(folder, *settings):
    paths = [write_records(folder / str(place), setting) for place, setting in enumerate(settings)]
    main([*map(str, paths), "--out", str(folder / "report")])
    return (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize("changes", [{"data": "$x_$"}, {"data": "two", "classes": ("$\\a$", "b")}])
def test_dollars_in_a_name_are_no_formula(tmp_path, changes):
    make_report(tmp_path, PLAIN._replace(**changes))


@pytest.mark.parametrize("names", [("birds", "Birds"), ("a b", "a-b")])
def test_two_data_sets_whose_names_are_nearly_the_same_have_figures_of_their_own(tmp_path, names):
    pictures = read_links(make_report(tmp_path, *(PLAIN._replace(data=name) for name in names)))[2]
    assert len(set(pictures)) == len(pictures)


def test_a_test_loss_that_is_not_finite_at_last_is_shown_as_that(tmp_path):
    # The records have no test loss of the baselines' third epoch.
    text = make_report(tmp_path, PLAIN._replace(epochs=3, repeats_from=3))
    assert "| baseline | 3 |" in text
    assert " nan | " in text


def test_the_command_says_of_every_finding_of_a_reduced_experiment_that_it_is_reduced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    make_report(tmp_path, PLAIN)
    said = capsys.readouterr().out
    assert said.count("(reduced)") == len(judge_claims(read_experiments([tmp_path / "0"])))


def test_sections_of_one_title_have_anchors_of_their_own_as_on_github():
    titles = ["Claims: a/b", "Claims: ab", "Claims: a-b", "Claims: ab"]
    document = Document("Report", Box([]), [], [Section(title, []) for title in titles])
    assert document.anchors == ["claims-ab", "claims-ab-1", "claims-a-b", "claims-ab-2"]
    page = web.render(document, Path())
    assert [page.count(f'id="{anchor}"') for anchor in document.anchors] == [1] * 4
    assert [page.count(f'href="#{anchor}"') for anchor in document.anchors] == [1] * 4


def test_a_line_break_in_a_name_does_not_break_a_table():
    table = markdown.render_block(Table(["data"], [["a\nb"]]))
    assert table.splitlines() == ["| data |", "| --- |", "| a b |"]


@pytest.mark.parametrize(
    ("cells", "is_numeric"), [(["3 of 32", "0"], False), (["3", "+1.5 ± 2"], True), (["1,000", "-"], True)]
)
def test_only_columns_of_numbers_are_set_to_the_right(cells, is_numeric):
    assert Table(["column"], [[cell] for cell in cells]).numeric == [is_numeric]

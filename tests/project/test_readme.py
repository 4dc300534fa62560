"""The Python blocks of the README, run as they stand."""

import re
from pathlib import Path

import pytest

import batch_sampler_attn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
PAGES += ROOT.glob("benchmarks/records/*/*.md")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_it_opens_with_the_advice_and_has_the_two_commands():
    assert README.index("generated: advice") < README.index("```")
    first, second = re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert "examples/quickstart.py" in first
    assert "-m pytest" in second


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {batch_sampler_attn.__version__}\n" in citation


def test_every_file_that_it_leads_to_is_there():
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README) if ":" not in target]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_no_page_shows_a_backtick_as_it_is():
    assert len(PAGES) > 30
    assert [path.name for path in PAGES if r"\`" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=pytest.mark.slow if "lightning" in block else ()) for block in BLOCKS],
    ids=["prune samples", "in Lightning", "in a loop", "around a sampler"],
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own
def test_a_block_runs_as_it_is_pasted(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    overheads = [int(per_cent) for per_cent in re.findall(r"overhead (\d+)%", capsys.readouterr().out)]
    assert len(overheads) == ("decide" in block) * 10
    assert max(overheads, default=0) <= 20

"""Words that Hydra refuses get a message that names the mistake; words of a sweep reach the jobs as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra_words import HOSTILE, values
from omegaconf import OmegaConf

from boxtwin.command_line import setting
from boxtwin.config.arguments import check_options, for_jobs_alone, refused_word
from boxtwin.config.compose import unknown_name
from boxtwin.config.sweeper import drop_repeated
from boxtwin.errors import InputError

ROOT = Path(__file__).parents[2]


def test_a_misspelt_name_is_named_whatever_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(ROOT / "count.py")])
    for value in ("../a = b", "a=b", "{", "'open", "[a, b"):
        told = refused_word(OverrideParseException(f"image={value}", ""), [f"image={value}"])
        assert "image;" in f"{told};".replace(",", ";")
        assert "images" in str(told)
    told = refused_word(OverrideParseException("b", ""), ["image=/a", "b"])
    assert "images" in str(told)
    assert "image=/a b" not in str(told)
    monkeypatch.setattr("sys.argv", [str(ROOT / "train.py")])
    told = refused_word(OverrideParseException("dataset.rooot=a = b", ""), ["dataset.rooot=a = b"])
    assert "dataset.root" in str(told)
    assert "dataset.rooot=" not in str(told)
    for name, now in (("trainer.workers", "trainer.batch_threads"), ("cells", "runs")):
        monkeypatch.setattr("sys.argv", [str(ROOT / ("train.py" if "." in name else "compare.py"))])
        told = refused_word(OverrideParseException(f"{name}=a (b", ""), [f"{name}=a (b"])
        assert now in str(told)
    told = refused_word(OverrideParseException("run (x=1)", ""), ["study=my", "run (x=1)"])
    assert "there is no setting" not in str(told)


@pytest.mark.parametrize(
    "word",
    [
        *("dataset=null", "generator=1", "labels=true", "detector=", "labels=[]", "dataset=coco,null"),
        *("split=[s1,s2]", "generator=[repeat]", "~generator", "~generator=repeat", "+generator=repeat"),
        *("experiment=null", "+experiment=demo"),
    ],
)
def test_a_group_takes_the_name_of_one_option(word: str) -> None:
    """Hydra merges the options of a list, so that a run takes the last; null and numbers end with a traceback."""
    with pytest.raises(InputError) as caught:
        check_options(["-m", "seed=1", word], [ROOT / "conf"])
    first, *others = str(caught.value).split("\n")
    assert word in first
    group = word.lstrip("~+").partition("=")[0]
    assert {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")} <= set(
        others[-1].partition("of ")[2].split(", ")
    )


def test_names_of_options_sweeps_and_other_settings_are_taken(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "'1'.yaml").touch()
    words = [
        "split=s1,s2",
        "split=glob(*)",
        "split=choice(s1,s2)",
        "dataset='1'",
        "dataset=none_such",
        "variations='2'",
    ]
    words += [
        "experiment=[demo,study]",
        "dataset@other=coco",
        "split.file=null",
        "seed=range(2)",
        "-m",
        "a = b",
        "x=[1]",
    ]
    check_options([*words, *(setting("study", value) for value in HOSTILE)], [ROOT / "conf", tmp_path])


def test_settings_of_a_swept_group_are_for_the_jobs_alone() -> None:
    """Hydra would apply them to the group's default option first, which may lack them."""
    plain = ["split.train=4", "seed=1", "generator=img2img,edit"]
    assert for_jobs_alone([*plain, "generator.tile=8"]) == [*plain, "generator.tile=8"]  # without -m
    texts = ["'12'", "'null'", "'a #b'", '"it\'s"', "'café; x!'", "", "a b", "[1,2]", "'a, b'", "null", "8", "1e5"]
    words = [f"generator.x{number}={text}" for number, text in enumerate(texts)]
    words += ["+generator.added=1", *(setting("generator.hostile", value) for value in HOSTILE[:1])]
    for value in HOSTILE:
        (word,) = for_jobs_alone(["-m", plain[2], setting("generator.x", value)])[2:]
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([word]), None)
        assert [values(job) for job in jobs] == [{"generator.x": value}] * len(jobs)
    found = for_jobs_alone(["-m", *plain, *words, "generator.s=1,2"])
    assert [word for word in found if not word.startswith(("generator.", "+generator."))] == ["-m", *plain]
    parsed = OverridesParser.create().parse_overrides(found[1:])
    assert [each.key_or_group for each in parsed if not each.is_sweep_override()] == ["split.train", "seed"]
    drop_repeated(parsed)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    assert len(jobs) == 4  # of two generators and two values
    expected = values([word.removeprefix("+") for word in words])
    for job in (values([word for word in job if "generator." in word]) for job in jobs):
        given = {key.removeprefix("+"): value for key, value in job.items() if not key.endswith(".s")}
        assert given == expected
    interpolated = ["-m", *plain, "generator.seed=${seed}"]  # which a sweep would escape
    assert for_jobs_alone(interpolated) == interpolated
    assert for_jobs_alone(["-m", "seed=0,1", "generator.tile=8"]) == ["-m", "seed=0,1", "generator.tile=8"]


def test_an_experiment_may_sweep_the_group(tmp_path: Path) -> None:
    words = ["-m", "experiment=mine,absent", "generator.tile=8", "detector.warmup_steps=1"]
    (tmp_path / "damaged.yaml").write_text("{")
    file = tmp_path / "mine.yaml"
    file.write_text("hydra: {sweeper: {params: {generator: 'img2img,edit', split.train_size: '1,2'}}}")
    assert for_jobs_alone(words, [tmp_path]) == [*words[:2], "generator.tile=8,8", words[3]]
    assert for_jobs_alone(["-m", "+experiment=damaged", words[2]], [tmp_path])[2] == words[2]
    assert for_jobs_alone([words[1], words[2]], [tmp_path])[1] == words[2]  # without -m


def test_no_name_of_an_option_file_is_taken_for_a_misspelt_one() -> None:
    for script in ("train.py", "generate.py", "count.py", "compare.py", "export.py", "review.py"):
        assert unknown_name(ROOT / script, "nonsense") is not None
        assert unknown_name(ROOT / script, "hydra.run.dir") is None
        assert unknown_name(ROOT / script, "hydra/launcher") is None
    keys = {
        f"{folder.name}.{key}" if file.parent == folder else f"{folder.name}.{file.parent.name}.{key}"
        for folder in (ROOT / "conf").iterdir()
        if folder.is_dir() and folder.name not in ("experiment", "dataset_generator")
        for file in folder.rglob("*.yaml")
        for key in map(str, OmegaConf.load(file))
        if key != "defaults"
    }
    assert len(keys) > 100
    for key in (*keys, *(folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir())):
        assert unknown_name(ROOT / "train.py", key) is None, key
        assert unknown_name(ROOT / "train.py", f"+{key}") is None, key

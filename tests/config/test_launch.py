import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
import requests
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from boxtwin.command_line import quote_path
from boxtwin.config import launch
from boxtwin.config.arguments import (
    check_options,
    quote_list,
    quote_numbers,
    quote_refused,
    quote_texts,
    refused_word,
)
from boxtwin.config.compose import register, to_object
from boxtwin.config.identity import REMOVED_SETTINGS, defining_values, run_name, setting_hash, short_hash
from boxtwin.config.schema import PATHS_OF_RUNS, TEXTS, BoxtwinConfig
from boxtwin.errors import InputError, unanswered
from boxtwin.run.generators import make_generator
from boxtwin.synthesis.ddpm.model import ModelSettings
from boxtwin.synthesis.generator import Generator

ROOT = Path(__file__).parents[2]
Compose = Callable[..., DictConfig]
OPTIONS = ROOT / "conf" / "variations"


@pytest.fixture
def composed() -> Iterator[Compose]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *overrides: compose("config", list(overrides))


def test_an_error_of_another_data_set_is_of_runs_that_read_it(composed: Compose) -> None:
    other = ["pretraining.dataset.name=x", "pretraining.dataset.root=B"]
    plain, same, pretrained = (
        launch._data_of(composed(*words))
        for words in (["seed=1"], ["seed=2", "trainer.steps=60"], ["pretraining=labelled_images", *other])
    )
    assert plain == same != pretrained


@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("variations=0,2,10", "variations='0','2','10'"),
        ("variations=5", "variations='5'"),
        ("variations=0, 2", "variations='0','2'"),
        ("variations=007", "variations='7'"),
        ("variations.per_image=5", "variations.per_image=5"),
        ("variations='0','2'", "variations='0','2'"),
        ("seed=0,1", "seed=0,1"),
        ("-m", "-m"),
    ],
)
def test_numbers_are_quoted_for_variations_only(typed: str, quoted: str) -> None:
    assert quote_numbers([typed], OPTIONS) == [quoted]


@pytest.mark.parametrize("value", ["/a b,c (1)", "a=b, é.json", "~/x", "my labels (1).json", "it's"])
def test_paths_of_data_sets_need_no_quotes_of_hydra(value: str, composed: Compose) -> None:
    for words in (f"split.file={value}", f"dataset.images={value}", f"dataset.annotations={value}"):
        key = words.partition("=")[0]
        (word,) = quote_refused([words], PATHS_OF_RUNS)
        assert OmegaConf.select(composed(word), key) == value


@pytest.mark.parametrize("script", ["train.py", "generate.py"])
def test_in_a_sweep_a_path_with_a_comma_that_is_no_list_is_one_path(composed: Compose, script: str) -> None:
    assert "composed_paths=PATHS_OF_RUNS" in (ROOT / script).read_text()
    value = "My folder (1), a=b"
    _, word, _ = quote_refused(["-m", f"dataset.images={value}", "seed=0,1"], PATHS_OF_RUNS)
    assert composed(word).dataset.images == value


@pytest.mark.parametrize(
    ("word", "paths"),
    [
        ("runs=[/a b,c (1)]", ["/a b", "c (1)"]),
        ("runs=[k=v]", ["k=v"]),
        ("runs=['a,b',/c d]", ["a,b", "/c d"]),
        ("runs=[a, b (1)]", ["a", "b (1)"]),
        ("runs=['a b' ,c (1)]", ["a b", "c (1)"]),
        ('runs=[c (1),"a,b",it\'s]', ["c (1)", "a,b", "it's"]),
        ("runs=['it\\'s, b',c (1)]", ["it's, b", "c (1)"]),
        ("runs=/a, b (1)/k=v", "/a, b (1)/k=v"),
        ("runs=a,b", "a,b"),
    ],
)
def test_lists_of_paths_need_no_quotes_of_hydra(word: str, paths: list[str] | str) -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("compare", [quote_path(quote_list(word, ["runs"]), ["runs"])]).runs == paths


@pytest.mark.parametrize("value", ["1.10", "007", "2026_11_28", "1e3", "true", "NaN", "+1", "1.1", "a-1.10", "v1"])
def test_text_that_looks_like_a_number_stays_as_it_is_typed(composed: Compose, value: str) -> None:
    for key in ("study", "dataset.name", "dataset.root", "data"):
        (word,) = quote_texts([f"{key}={value}"], TEXTS)
        assert OmegaConf.select(composed(word), key) == value
    sweep = OverridesParser.create().parse_override(quote_texts([f"study={value},x"], TEXTS)[0])
    studies = [composed(f"study={each}").study for each in sweep.sweep_string_iterator()]
    assert studies == [value, "x"]


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("runs=[1.10,a/b, 2_0]", "runs=['1.10',a/b,'2_0']"),
        ("dataset.root=data/a,1.10", "dataset.root=data/a,'1.10'"),
        ("study=1.10, 1.2", "study='1.10',1.2"),
        ("+study=1e3", "+study='1e3'"),
    ],
)
def test_each_part_of_a_list_of_texts_stays_as_it_is_typed(word: str, quoted: str) -> None:
    assert quote_texts([word], TEXTS) == [quoted]


@pytest.mark.parametrize(
    "word", ["study=null", "study=${seed}", "study='1.10'", "seed=007", "-m", "dataset.root=a , b"]
)
def test_words_that_are_no_such_text_are_left_alone(word: str) -> None:
    assert quote_texts([word], TEXTS) == [word]


def test_what_hydra_takes_is_left_alone() -> None:
    keys = ["dataset.root"]
    taken = ("dataset.root=/a b", r"dataset.root=/a\,b", "dataset.root=${data}/x", "dataset.root='/a,b'", "study=a,b")
    assert quote_refused(taken, keys) == list(taken)
    sweep = ["-m", "dataset.root=/a,/b", "dataset.root=/a (1)"]
    assert quote_refused(sweep, keys) == ["-m", "dataset.root=/a,/b", "dataset.root='/a (1)'"]
    assert quote_refused(sweep[1:], keys) == ["dataset.root='/a,/b'", "dataset.root='/a (1)'"]


@pytest.mark.parametrize("number", [0, 2, 10, 5, 123])
def test_every_number_of_variations_can_be_composed(composed: Compose, number: int) -> None:
    overrides = quote_numbers([f"variations={number}"], OPTIONS)
    assert composed(*overrides).variations.per_image == number
    assert composed("variations.per_image=1", *overrides).variations.per_image == 1


def test_the_run_is_named_as_designed(composed: Compose) -> None:
    config = composed("split=s2", "variations='2'", "detector=yolov3_tiny", "seed=3")
    assert run_name(config) == "s2-x2-pixel_ddpm-yolov3_tiny-seed3"
    assert run_name(composed("variations='0'")) == "s1-x0-none-yolov3_tiny_3l-seed0"


def test_there_is_one_baseline_for_all_generators(composed: Compose) -> None:
    plain, other = composed("variations='0'"), composed("variations='0'", "generator=repeat")
    assert defining_values(plain) == defining_values(other)
    # Of variations that there are none of, nothing matters.
    assert defining_values(composed("variations='0'", "variations.seed=3", "labels=pseudo")) == defining_values(plain)
    assert defining_values(composed("variations='2'", "variations.seed=3")) != defining_values(
        composed("variations='2'")
    )
    with_variations = composed("variations='2'"), composed("variations='2'", "generator=repeat")
    assert defining_values(with_variations[0]) != defining_values(with_variations[1])


def test_the_machine_does_not_define_a_run(composed: Compose) -> None:
    plain = defining_values(composed())
    for override in (
        "trainer.threads=1",
        "trainer.precision=float32",
        "trainer.batch_threads=2",
        "trainer.cache=false",
        "trainer.accelerator=cuda",
        "trainer.compile=true",
        "dataset.root=elsewhere",
        "data=elsewhere",
        "study=another",
        "rerun=true",
        "tracking.uri=http://somewhere:5000",
        "tracking.folder=elsewhere",
    ):
        assert defining_values(composed(override)) == plain, override
    for override in ("trainer.steps=600", "detector.learning_rate=0.1", "seed=1", "split.seed=1"):
        assert defining_values(composed(override)) != plain, override


def test_the_case_study_has_its_own_detector_and_equal_epochs(composed: Compose) -> None:
    config = composed("experiment=case_study")
    assert (config.trainer.steps, config.trainer.epochs) == (None, 100)
    assert config.variations.validation
    assert config.detector.architecture == "yolov3"
    assert config.study == "sar_scenes_case_study"


def test_the_axes_of_the_table_share_a_setting(composed: Compose) -> None:
    settings = {
        setting_hash(composed(f"split={split}", f"variations='{number}'", f"seed={seed}"))
        for split in ("s1", "s2")
        for number in (0, 10)
        for seed in (0, 1)
    }
    assert len(settings) == 1
    assert setting_hash(composed("trainer.steps=600")) not in settings


def test_a_removed_setting_stays_in_identities_and_is_refused_by_name(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REMOVED_SETTINGS, "detector", {"gone": 3})
    monkeypatch.setitem(REMOVED_SETTINGS, "controls.CopyPaste", {"gone": 4})
    values = defining_values(composed("generator=copy_paste", "variations='2'"))
    assert (values["detector"]["gone"], values["generator"]["gone"]) == (3, 4)
    assert "gone" not in defining_values(composed("generator=repeat", "variations='2'"))["generator"]
    for setting, value in {
        "detector.gone": "3",
        "generator.rho": "1.5",
        "generator.eta": "0.0 or 0.3, depending on the generator",
    }.items():
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        with pytest.raises(InputError, match=f"{setting} is no setting any more; its value is always {value}: leave"):
            launch._run(lambda setting=setting: composed("generator=pixel_ddpm", f"{setting}=2"))  # type: ignore[misc]
    assert "longest_wait" not in defining_values(composed("generator=openai_edit", "variations='2'"))["generator"]
    config = to_object(composed("generator=copy_paste", "+generator.gone=5"), BoxtwinConfig)
    with pytest.raises(InputError, match=r"no settings any more: generator\.gone \(always 4\)"):
        make_generator(config)


def test_a_hash_does_not_depend_on_order() -> None:
    assert short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})


@pytest.mark.parametrize("dataset", ["coco", "hrsid", "sar_scenes"])
@pytest.mark.parametrize("detector", ["yolov3", "yolov3_nano", "yolov3_tiny"])
@pytest.mark.parametrize("generator", ["copy_paste", "pixel_ddpm", "pixel_ddpm_joint", "repeat"])
def test_all_options_compose(composed: Compose, dataset: str, detector: str, generator: str) -> None:
    config = composed(f"dataset={dataset}", f"detector={detector}", f"generator={generator}", "dataset.root=somewhere")
    assert (config.dataset.name, config.detector.name, config.generator.name) == (dataset, detector, generator)


OWN_MODEL = ["inpaint_background", "pixel_ddpm_joint", "pixel_ddpm_layout", "pixel_ddpm_sketch"]


@pytest.mark.parametrize("experiment", ["", "experiment=hrsid200"])
def test_options_around_the_own_model_share_it(composed: Compose, experiment: str) -> None:
    names = [field.name for field in fields(ModelSettings)]
    models = []
    for generator in OWN_MODEL:
        config = composed(f"generator={generator}", "dataset.root=somewhere", *([experiment] if experiment else []))
        models.append({name: config.generator[name] for name in names})
        assert config.generator.crop == (96 if experiment else 64)
    assert all(model == models[0] for model in models)


@pytest.mark.parametrize("generator", [*OWN_MODEL, "copy_paste", "pixel_ddpm", "repeat"])
@pytest.mark.parametrize("experiment", [[], ["experiment=hrsid200"]])
def test_every_generator_is_built_with_and_without_the_experiment(
    composed: Compose, generator: str, experiment: list[str]
) -> None:
    config = composed(f"generator={generator}", "dataset.root=somewhere", *experiment)
    arguments = {key: value for key, value in config.generator.items() if key != "name"}
    made = hydra.utils.instantiate(arguments, _convert_="all")
    assert isinstance(made, Generator)
    assert made.name == config.generator.name == generator


def test_a_server_that_stops_answering_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MlflowException) as caught:
        MlflowClient(tracking_uri=address).log_param("0" * 32, "a", 1)
    said = unanswered(caught.value)
    assert said is not None
    assert said.startswith(address)
    assert "\n" not in said
    assert unanswered(MlflowException("of another kind")) is None


def test_a_fault_in_dealing_with_a_server_that_is_away_is_a_fault() -> None:
    """Its traceback is wanted, not the advice to wait."""
    fault = KeyError("nothing")
    fault.__context__ = requests.ConnectionError()  # which was being handled
    assert unanswered(fault) is None
    fault.__cause__ = fault.__context__
    assert unanswered(fault) is not None


def test_a_folder_under_its_former_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generator_at").mkdir()
    with pytest.raises(InputError, match="dataset_generator"):
        quote_numbers([f"--config-dir={tmp_path}", "seed=0"], OPTIONS)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["seed=0,1"], r"seed=0,1 lists several values; add -m .*\npython train.py -m seed=0,1$"),
        (["seed=range(3)"], r"lists several values; add -m .*\npython train.py -m 'seed=range\(3\)'$"),
        (["split=s2", "variations=0,2"], r"^variations=0,2 lists .*\npython train.py -m split=s2 variations=0,2$"),
        (
            ["study=a radar image, at sea"],
            r"""as one text it is written "study='a radar image, at sea'"; add -m .*\npython train.py -m 'st""",
        ),
        (["data=/a", "b"], "^b is no setting with a value; a value with a blank in it needs quotes: 'data=/a b'$"),
        (["b (1)/c"], "needs quotes"),
        (["study=a (b"], r"""Hydra cannot read study=a \(b; as text it is written "study='a \(b'"$"""),
        (["read=[a,", "b (1)]"], r"^read=\[a, is a part of a list, which .*quote the list: 'read=\[a, b \(1\)\]'$"),
        (["study=[a,", "b"], r"^Hydra cannot read study=\[a,; as text"),
        (["runs=[a,", "b"], "^there is no setting runs"),
        (["seed=x"], "^seed: Value 'x' of type 'str' could not be converted to Integer$"),
        (["study=[a,b]"], "^study: Cannot convert 'list' to string"),
        (["runs=a"], "^there is no setting runs; (?!did you mean runs)"),
    ],
)
def test_words_that_hydra_refuses_are_told_in_one_line(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, typed: list[str], said: str
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(InputError, match=said):
        launch._run(lambda: composed(*quote_numbers(typed, OPTIONS)), typed)


@pytest.mark.parametrize("word", ["~seed", "~trainer.cache", "~split.file", "~seed=0"])
def test_settings_are_not_deleted(word: str) -> None:
    with pytest.raises(InputError, match=rf"^{word}: settings cannot be deleted; give "):
        check_options([word], [ROOT / "conf"])


def test_errors_of_hydra_that_say_it_all_are_one_line() -> None:
    for said in ("The --resolve flag can only be used with --cfg", "BasicSweeper does not support sweep type : X"):
        assert str(refused_word(ValueError(said), [])) == said


def test_a_list_for_a_script_without_sweeps_gets_no_advice_to_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr("sys.argv", ["count.py"])
    said = "formats=coco,yolo lists several values; as one text it is written formats='coco,yolo', as a list "
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(InputError) as caught:
        launch._run(lambda: compose("count", ["formats=coco,yolo"]), ["formats=coco,yolo"])
    assert str(caught.value).replace('"', "") == f"{said}'formats=[coco,yolo]'"


def test_wrong_settings_of_a_sweep_are_told_at_once_with_their_overrides(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(config: DictConfig) -> None:
        if config.split.name == "s2" and config.seed:
            raise InputError("too few")
        if config.trainer.steps == 7:
            raise InputError("seven")
        if config.seed == 3:
            raise InterpolationResolutionError("known in a run alone")
        assert "hydra" not in config

    monkeypatch.setattr(launch, "_check_run", check)

    def sweep(*runs: str) -> list[tuple[list[str], DictConfig]]:
        return [(words.split(), composed(*words.split())) for words in runs]

    launch.check_all(sweep("split=s1 seed=1", "split=s2 seed=0", "split=s1 seed=3"))
    with pytest.raises(InputError) as caught:
        launch.check_all(
            sweep(
                "split=s1 trainer.steps=6 seed=0", "split=s1 trainer.steps=7 seed=0", "split=s2 trainer.steps=6 seed=1"
            )
        )
    assert str(caught.value).splitlines() == [
        "2 of 3 runs have wrong settings; none was begun:",
        "  trainer.steps=7: seven",
        "  split=s2 seed=1: too few",
    ]
    with pytest.raises(InputError, match=r"^2 of 2 runs have wrong settings; none was begun:\n  seven$"):
        launch.check_all(sweep("trainer.steps=7 seed=0", "trainer.steps=7 seed=1"))


def test_help_that_is_read_no_further_is_no_error() -> None:
    """As by ``--help | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "generate.py"), "--help"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")

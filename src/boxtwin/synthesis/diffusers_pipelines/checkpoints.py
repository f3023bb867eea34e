"""Checkpoints of diffusers pipelines: a folder, or a name on the Hugging Face hub with a revision."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from boxtwin.errors import InputError
from boxtwin.synthesis.generator import Json, Model
from boxtwin.synthesis.manifest import content_hash

INDEX = "model_index.json"  # what diffusers' pipelines have in their folder
HASHED = 16  # hexadecimal digits of a content's hash that tell folders apart
# Classes of the pipelines whose checkpoints a generator takes, by the generator's name.
UNCLIP = ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline", "KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline")
KINDS = {
    "sd_variations": ("StableDiffusionImageVariationPipeline",),
    "unclip": UNCLIP,
    "gligen": ("StableDiffusionGLIGENPipeline",),
    "edit": ("FluxKontextPipeline", "Flux2KleinPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
}
PRIORS = {"unclip": "KandinskyV22PriorPipeline", "redux": "FluxPriorReduxPipeline"}  # of their setting `prior`


@dataclass(eq=False)
class Checkpoint:
    """One checkpoint, not yet loaded: a folder that holds a ``model_index.json``, or an id such as ``owner/name``.

    ``revision`` is the branch, tag or commit of an id. Messages name it by the ``setting`` of the generator
    ``asked_by``. What is no whole pipeline consists of ``parts``: the files and folders that are loaded from a folder.
    Of a pipeline, the components ``without`` are not loaded. Raises InputError if transformers is not installed, or the
    folder holds no pipeline, or lacks a part.
    """

    name: str  # folder or id
    revision: str | None
    asked_by: str
    parts: Sequence[str] = ()
    without: Sequence[str] = ()
    setting: str = "checkpoint"

    def __post_init__(self) -> None:
        for package in ("diffusers", "transformers"):
            if find_spec(package) is None:
                raise InputError(f"{self.asked_by} needs {package}: pip install 'boxtwin[pretrained]'")
        path = Path(self.name).expanduser()
        # Ids have one slash at most; anything else can only be a place on the disk.
        looks_like_path = path.is_absolute() or self.name.startswith((".", "~")) or self.name.count("/") > 1
        self.folder = path if path.is_dir() or looks_like_path else None
        self.place = str(self.folder or self.name)
        if self.folder is not None:
            place = f"{self.asked_by}: generator.{self.setting}={self.name}"
            if missing := [part for part in self.parts or (INDEX,) if not (self.folder / part).exists()]:
                cure = "give the folder that save_pretrained writes, or an id (owner/name)"
                lacks = f"holds no {', '.join(missing)}" if self.folder.exists() else "does not exist"
                raise InputError(f"{place} {lacks}: {cure}")
            if self.revision is not None:
                name = "generator." + (f"{self.setting}_revision" if self.setting != "checkpoint" else "revision")
                raise InputError(f"{place} is a folder and has no revisions: say {name}=null, not {self.revision!r}")
        self._commit: str | None = None

    def parameters(self) -> dict[str, Json]:
        """What it is: id and revision, or a folder's name and the hash of its content (`folder_hash`)."""
        if self.folder is None:
            return {"checkpoint": self.name, "revision": self.revision or "main"}
        return {"checkpoint": self.folder.resolve().name, "revision": folder_hash(self.folder, *self.parts)}

    def model(self) -> Model:
        """Id and commit as far as it is known, or folder and hash."""
        if self.folder is None:
            return Model(self.name, self._commit or self.revision or "main")
        return Model(str(self.folder.resolve()), folder_hash(self.folder, *self.parts))

    def index(self, of: str = "DiffusionPipeline", **where: str) -> dict[str, Any]:
        """The pipeline's class and components, or a model's settings (``of`` AutoModel), or InputError."""
        with self.errors():
            where |= {"revision": self.revision or "main"}
            loader = getattr(import_module("diffusers"), of).load_config
            index, self._commit = loader(self.place, return_commit_hash=True, **where)
        return dict(index)

    def check_kind(self, *kinds: str, of: str = "DiffusionPipeline") -> str:
        """Which of the classes ``kinds`` it is, if any, or InputError: diffusers would load any and fail later."""
        kind = str(self.index(of)["_class_name"])
        if kinds and kind not in kinds:
            needed = f"one of {', '.join(kinds)} is needed: choose another checkpoint"
            raise InputError(f"{self.asked_by}: {self.name} is {described(kind)}; {needed}")
        return kind

    def load(self, pipeline_class: str, dtype: torch.dtype, **components: Any) -> Any:
        """Load it with a pipeline class of diffusers, without progress bar, safety checker and watermark.

        Safety checkers blacken images that they wrongly classify as indecent; watermarks change pixels.
        ``components`` replace the checkpoint's own; None omits one. InputError if missing, damaged or of another kind.
        """
        index, components = self.index(), dict.fromkeys(self.without) | components
        if "safety_checker" in index:
            components |= {"safety_checker": None, "requires_safety_checker": False}
        with self.errors(f"; it is {described(index['_class_name'])}", components.get("variant")):
            loader = getattr(import_module("diffusers"), pipeline_class).from_pretrained
            pipeline = loader(self.place, revision=self.revision, dtype=dtype, **components)
        if getattr(pipeline, "watermark", None) is not None:
            pipeline.watermark = None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def load_model(self, library: str, model_class: str, dtype: torch.dtype, **where: str) -> Any:
        """Load a single model of it, with its class."""
        loader = getattr(import_module(library), model_class).from_pretrained
        with self.errors():
            return loader(self.place, revision=self.revision or "main", dtype=dtype, **where)

    @contextmanager
    def errors(self, known: str = "", variant: str | None = None) -> Iterator[None]:
        """Turn every error of downloading and loading into one message, with what is ``known`` of the checkpoint."""
        try:
            with warnings.catch_warnings():
                # A setting that diffusers passes on to the hub's client, which no longer has it.
                warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
                yield
        except Exception as error:  # of the hub's client, of safetensors, of torch, of diffusers itself
            reason, setting, name = " ".join(str(error).split())[:400], f"generator.{self.setting}", self.name
            cure = "give the whole folder of a diffusers pipeline of the kind that this generator needs"
            if self.folder is None:
                cure = f"""check the id and the connection; with HF_HUB_OFFLINE=1 it must be in the cache (HF_HOME). \
Without a connection, download it on another machine (hf download {name} --local-dir FOLDER), copy the folder here and \
say {setting}=FOLDER. Repositories that are gone, Stable Diffusion 2 among them, have copies under other names"""
            if variant and f"variant={variant}" in reason:
                cure, known = f"it has no {variant} files: say generator.load.variant=null to use its others", ""
            revision = f" (revision {self.revision})" if self.revision else ""
            failed = f"{self.asked_by}: {setting}={name}{revision} cannot be loaded"
            raise InputError(f"{failed}: {cure}{known}. The reason: {reason}") from error


def described(kind: str) -> str:
    """A pipeline's class, and which generator takes its checkpoints."""
    taken = [f"{option} takes" for option, kinds in KINDS.items() if kind in kinds]
    taken += [f"{option} takes as its prior" for option, prior in PRIORS.items() if kind == prior]
    if "Inpaint" in kind and accepts(related("AUTO_INPAINT_PIPELINES_MAPPING", kind), "strength"):
        taken.append("inpaint_pretrained takes")
    elif "Inpaint" not in kind and related("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", kind):
        taken.append("text_to_image takes")
    return f"a {kind}, the kind that generator={taken[0]}" if taken and "Control" not in kind else f"a {kind}"


def related(table: str, kind: str) -> type | None:
    """The pipeline of a ``table`` of diffusers that is of one family with the class named ``kind``, if there is one."""
    families: Any = import_module("diffusers.pipelines.auto_pipeline")
    return families._get_task_class(getattr(families, table), kind, throw_error_if_not_exist=False)


def accepts(pipeline: object, setting: str) -> bool:
    """Whether the call of a pipeline, or of a class of pipelines, has such a setting."""
    pipeline_class = pipeline if isinstance(pipeline, type) else type(pipeline)
    return setting in inspect.signature(pipeline_class.__call__).parameters


def folder_hash(folder: Path, *parts: str) -> str:
    """Hash of names, sizes and content of a pipeline or of its ``parts``. It takes a second per gigabyte, once."""
    within = [folder / name for name in parts or (INDEX, *sorted(json.loads((folder / INDEX).read_text())))]
    files = [file for part in within for file in (part, *sorted(part.rglob("*"))) if file.is_file()]
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0{content_hash(file)}\n".encode())
    return total.hexdigest()[:HASHED]

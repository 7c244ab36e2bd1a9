"""The file of a trained model: its report, and the weights of what won."""

import json
import logging
import os
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import numpy as np

from astraea_local.learning.evaluate import Report
from astraea_local.scheduler.learned import OUTPUT_FEATURES, WAIT_FEATURES, Array, LearnedModel, LearnedPair

Arrays = dict[str, Array]

_logger = logging.getLogger(__name__)

# What the readers of the archive, its arrays and the text in it raise; RuntimeError: a flag says encrypted.
_BROKEN = (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)
_FEATURES = {"output": OUTPUT_FEATURES, "wait": WAIT_FEATURES}


def file_name(model: str | None) -> str:
    """Name of the file of a model, or of all models together; any model name gives a valid one."""
    return "learned.npz" if model is None else f"learned-{quote(model, safe=' ')}.npz"


def save(path: Path, report: Report, networks: dict[str, Arrays]) -> None:
    """Writes the report and the networks that won, at once or not at all. Raises `OSError`.

    A network that lost is not written, so that it cannot be used by mistake.
    """
    about = {"report": asdict(report), "features": _FEATURES}
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "about": np.array(json.dumps(about))
    }
    for target in report.targets:
        if target.wins:
            named = networks[target.target]
            arrays |= {f"{target.target}.{name}": array for name, array in named.items()}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path) -> LearnedPair | None:
    """For each target a model where it beats the empirical one; None when there is no usable file.

    A file of another version, trained with other features, is not usable.
    """
    try:
        # Opened here: numpy leaves the file of a broken archive open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        if about["features"] != {target: list(names) for target, names in _FEATURES.items()}:
            _logger.info("%s: trained by another version; not used", path)
            return None
        return LearnedPair(_model(arrays, "output"), _model(arrays, "wait"))
    except FileNotFoundError:
        return None
    except _BROKEN as error:
        _logger.warning("%s: not a trained model: %s", path, error)
        return None


def _model(arrays: Arrays, target: str) -> LearnedModel | None:
    prefix = f"{target}."
    named = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not named:
        return None
    model = LearnedModel(named)
    if model.feature_count != len(_FEATURES[target]):
        raise ValueError(f"{target}: {model.feature_count} features")
    return model

"""Model bundles and the registry: immutable directories of ONNX and JSON, pinned by hashes, picked by slots.

A bundle holds `policy.onnx`, perhaps `weights.safetensors`, and `manifest.json`, which carries the SHA-256 of
every file, the feature spec and its hash, and where the training data came from. Its id is the hash of the
manifest, so a changed byte anywhere refuses to load. Nothing in it is ever unpickled.

    models/policy/<id>/            bundles
    models/slots/<name>.json       which bundle serves a group of instruments, swapped atomically, with history
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from brokers.domain import utc
from brokers.files import atomic_write, write_folder
from brokers.series import BarSeries
from strategies.features import FeatureError, FeatureSpec

FORMAT = 1
POLICY_FILE = "policy.onnx"
WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"
HISTORY_MAX = 200
"""Promotions that a slot remembers."""

_SLOT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_POLICY_ID = re.compile(r"[0-9a-f]{16}")


class BundleError(Exception):
    """A bundle or slot that must not be used, and what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One verified bundle.

    Args:
        path: Its directory.
        id: 16 hexadecimal digits: the hash of the manifest's content.
        feature_spec: The features that the policy reads.
        targets: Targets it has a value for: (0, 1) or (-1, 0, 1).
        manifest: Everything that `manifest.json` says.
    """

    path: Path
    id: str
    feature_spec: FeatureSpec
    targets: tuple[int, ...]
    manifest: Mapping[str, Any]

    @property
    def policy_path(self) -> Path:
        """The ONNX file."""
        return self.path / POLICY_FILE

    def read_policy(self) -> bytes:
        """Return the ONNX file's content, which is hashed again: what is served is what was verified.

        Raises:
            BundleError: The file was changed since the bundle was loaded.
        """
        content = self.policy_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][POLICY_FILE]:
            raise BundleError(
                f"{self.policy_path} was changed since it was verified: restore the bundle from its source"
            )
        return content

    @property
    def weights_path(self) -> Path | None:
        """The weights to resume training from; None where the bundle has none."""
        return self.path / WEIGHTS_FILE if WEIGHTS_FILE in self.manifest["files"] else None

    @property
    def data_feed(self) -> str:
        """Name of the feed that the training bars came from."""
        return str(self.manifest["data"]["feed"])

    @classmethod
    def load(cls, path: Path | str, *, data_feed: str | None = None, feature_spec: FeatureSpec | None = None) -> Bundle:
        """Read a bundle and verify every hash.

        Args:
            path: Its directory.
            data_feed: The feed that will serve bars; None where it does not matter (listing, evaluation).
            feature_spec: The features that will be computed; None to take the bundle's.

        Raises:
            BundleError: Anything missing, changed or made for other features or another feed.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        if manifest.get("format") != FORMAT:
            raise BundleError(
                f"bundle {path} has format {manifest.get('format')!r}, this program reads {FORMAT}: train again, "
                "or run the version that made it"
            )
        try:
            recorded_id, files = str(manifest["id"]), dict(manifest["files"])
            spec_json, spec_hash = manifest["feature_spec"], manifest["feature_spec_hash"]
            made_on, targets = str(manifest["data"]["feed"]), tuple(int(target) for target in manifest["targets"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"manifest of bundle {path} lacks {error}: restore it from its source") from error
        if recorded_id != _content_id(manifest):
            raise BundleError(f"manifest of bundle {path} was changed after it was written: restore it from its source")
        _verify_files(path, files)
        try:
            spec = FeatureSpec.from_json(spec_json)
        except FeatureError as error:
            raise BundleError(f"bundle {path}: {error}") from error
        if spec.hash != spec_hash:
            raise BundleError(f"feature spec of bundle {path} does not match its hash {spec_hash}: train again")
        if feature_spec is not None and feature_spec.hash != spec.hash:
            raise BundleError(
                f"bundle {path} reads feature spec {spec.hash[:12]}, the configured one is {feature_spec.hash[:12]}: "
                "configure the bundle's features, or train a policy on these"
            )
        if data_feed is not None and data_feed != made_on:
            raise BundleError(
                f"bundle {path} was trained on feed {made_on!r}, bars come from {data_feed!r}: prices and volumes "
                f"differ between feeds; train on {data_feed!r}, or configure {made_on!r}"
            )
        return cls(path=path, id=recorded_id, feature_spec=spec, targets=targets, manifest=manifest)


def write_bundle(
    directory: Path | str,
    *,
    policy: bytes,
    feature_spec: FeatureSpec,
    data: Mapping[str, Any],
    training: Mapping[str, Any],
    seeds: Sequence[int],
    code_version: str,
    metrics: Mapping[str, Any],
    targets: Sequence[int] = (0, 1),
    weights: bytes | None = None,
) -> Bundle:
    """Write a bundle as one directory, at once or not at all, and return it verified.

    Args:
        directory: The bundle's directory; it must not exist yet, or hold this very bundle.
        policy: The ONNX model; its answer on a canary input is recorded.
        feature_spec: The features it reads.
        data: At least `feed` (name) and `fingerprint` (see `data_fingerprint`); JSON values.
        training: The whole training configuration; JSON values.
        seeds: Every seed that was used.
        code_version: Version of the program, with the commit where there is one.
        metrics: What was measured, with intervals; JSON values.
        targets: Targets the policy has values for.
        weights: A safetensors file.

    Raises:
        BundleError: Data without feed or fingerprint, a model that does not keep the contract, or a directory
            that holds something else.
    """
    from strategies.policy import record_canary  # noqa: PLC0415 -- ONNX Runtime is loaded only where a model runs

    directory = Path(directory)
    missing = [key for key in ("feed", "fingerprint") if not data.get(key)]
    if missing:
        raise BundleError(f"bundle data lacks {', '.join(missing)}: name where the bars came from, and their hash")
    contents = {POLICY_FILE: policy} | ({WEIGHTS_FILE: weights} if weights is not None else {})
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "feature_spec": json.loads(feature_spec.to_json()),
        "feature_spec_hash": feature_spec.hash,
        "targets": sorted(targets),
        "data": dict(data),
        "training": dict(training),
        "seeds": list(seeds),
        "code_version": code_version,
        "metrics": dict(metrics),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "canary": record_canary(policy, feature_spec, targets),
    }
    try:
        manifest["id"] = _content_id(manifest)
    except (TypeError, ValueError) as error:
        raise BundleError(f"bundle manifest cannot be written as JSON ({error}): give plain, finite values") from error
    contents[MANIFEST_FILE] = _dump(manifest)
    if directory.exists() and any(directory.iterdir()):
        present = Bundle.load(directory)
        if present.id != manifest["id"]:
            raise BundleError(f"{directory} holds bundle {present.id} already: choose another directory")
        return present
    write_folder(directory, contents)
    return Bundle.load(directory)


def data_fingerprint(series: Mapping[str, BarSeries]) -> str:
    """Return the SHA-256 of bars: symbols, times, prices, volumes, factors and user columns, to the last bit."""
    digest = hashlib.sha256()
    for symbol in sorted(series):
        one = series[symbol]
        columns = [one.start_ns, one.close_ns, one.open, one.high, one.low, one.close, one.volume, one.adj_factor]
        columns += [one.signals[name] for name in sorted(one.signals)]
        digest.update(json.dumps([symbol, len(one), sorted(one.signals)]).encode())
        for column in columns:
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What serves one group of instruments.

    Args:
        name: Of the slot.
        policy: Id of the policy bundle.
        llm: The language model's part: tag, digest, calibration, `tuned_on` (a policy id); None for none.
        fusion: Fusion weights; None for the defaults.
        at: When it was promoted, aware UTC.
        reason: Why.
        history: Earlier entries, oldest first, without histories of their own.
    """

    name: str
    policy: str
    llm: Mapping[str, Any] | None = None
    fusion: Mapping[str, Any] | None = None
    at: datetime
    reason: str
    history: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def llm_fits(self) -> bool:
        """True where the language model was tuned on this very policy; otherwise its weight is zero."""
        return self.llm is not None and self.llm.get("tuned_on") == self.policy

    @property
    def llm_weight(self) -> float:
        """The weight that the language model has earned here: none where it was tuned on anything else."""
        return float((self.fusion or {}).get("llm_weight", 0.0)) if self.llm_fits else 0.0


class Registry:
    """Bundles and slots under one directory (`models/`)."""

    def __init__(self, root: Path | str) -> None:
        """Use a directory; it is made when something is first written."""
        self.root = Path(root)

    def policies(self) -> tuple[str, ...]:
        """Return the ids of all bundles, oldest first."""
        folder = self.root / "policy"
        if not folder.is_dir():
            return ()
        found = [path for path in folder.iterdir() if _POLICY_ID.fullmatch(path.name)]
        return tuple(path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name)))

    def slots(self) -> tuple[str, ...]:
        """Return the names of all slots."""
        return tuple(sorted(path.stem for path in (self.root / "slots").glob("*.json")))

    def show(self, policy_id: str, *, data_feed: str | None = None, feature_spec: FeatureSpec | None = None) -> Bundle:
        """Load and verify a bundle by its id.

        Raises:
            BundleError: Unknown, or refused by `Bundle.load`.
        """
        if policy_id not in self.policies():
            raise BundleError(
                f"no policy {policy_id!r} in {self.root}: there are {', '.join(self.policies()) or 'none'}"
            )
        bundle = Bundle.load(self.root / "policy" / policy_id, data_feed=data_feed, feature_spec=feature_spec)
        if bundle.id != policy_id:
            raise BundleError(f"{bundle.path} holds bundle {bundle.id}: put it under its own id")
        return bundle

    def add(self, bundle: Bundle) -> Bundle:
        """Copy a bundle into the registry, at once or not at all; one that is there already is verified."""
        if bundle.id not in self.policies():
            names = [*bundle.manifest["files"], MANIFEST_FILE]
            contents = {name: (bundle.path / name).read_bytes() for name in names}
            write_folder(self.root / "policy" / bundle.id, contents)
        return self.show(bundle.id)

    def slot(self, name: str) -> Slot:
        """Return what a slot names.

        Raises:
            BundleError: No such slot, or a file that is not one.
        """
        path = self._slot_path(name)
        if not path.exists():
            raise BundleError(
                f"no slot {name!r} in {self.root} (there are {', '.join(self.slots()) or 'none'}): "
                f"run `tandem models promote` to fill it"
            )
        try:
            content = json.loads(path.read_bytes())
            return Slot(
                name=name,
                policy=_policy_id(content),
                llm=_part(content, "llm"),
                fusion=_weights(_part(content, "fusion")),
                at=utc(datetime.fromisoformat(content["at"])),
                reason=str(content["reason"]),
                history=tuple(entry for entry in content["history"] if _policy_id(entry)),
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"[:100]
            raise BundleError(
                f"slot file {path} is damaged ({what}): move it away, then fill the slot with `tandem models promote`"
            ) from error

    def load_slot(self, name: str, *, data_feed: str | None = None, feature_spec: FeatureSpec | None = None) -> Bundle:
        """Load and verify the bundle that a slot names.

        Raises:
            BundleError: No such slot, or its bundle is refused.
        """
        return self.show(self.slot(name).policy, data_feed=data_feed, feature_spec=feature_spec)

    def promote(
        self,
        name: str,
        policy_id: str,
        *,
        at: datetime,
        reason: str,
        llm: Mapping[str, Any] | None = None,
        fusion: Mapping[str, Any] | None = None,
    ) -> Slot:
        """Let a slot name a policy from now on, after verifying it; what it named before goes to its history.

        Raises:
            BundleError: The policy is refused, or the name is not one for a slot.
        """
        path = self._slot_path(name)
        self.show(policy_id)
        with self._lock():
            history: tuple[Mapping[str, Any], ...] = ()
            if path.exists():
                before = self.slot(name)
                history = (*before.history, _entry(before))[-HISTORY_MAX:]
            slot = Slot(name=name, policy=policy_id, llm=llm, fusion=fusion, at=utc(at), reason=reason, history=history)
            with atomic_write(path) as file:
                file.write(_dump({"slot": name, **_entry(slot), "history": list(history)}))
        return slot

    def rollback(self, name: str, *, at: datetime, reason: str = "rollback") -> Slot:
        """Let a slot name again what it named before its last change; two in a row go back and forth.

        Raises:
            BundleError: It never named anything else, or that bundle is refused now.
        """
        current = self.slot(name)
        if not current.history:
            raise BundleError(f"slot {name!r} has named nothing but {current.policy}: promote another policy instead")
        before = current.history[-1]
        return self.promote(
            name, str(before["policy"]), at=at, reason=reason, llm=before["llm"], fusion=before["fusion"]
        )

    def _slot_path(self, name: str) -> Path:
        if not _SLOT_NAME.fullmatch(name):
            raise BundleError(f"slot name {name!r}: use lower-case letters, digits, dots and dashes, at most 64")
        return self.root / "slots" / f"{name}.json"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep two promotions from losing one another's history; the system frees it when a process dies."""
        folder = self.root / "slots"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _policy_id(entry: Mapping[str, Any]) -> str:
    """Return the policy that a slot's entry names; raises what a damaged entry raises."""
    policy = entry["policy"]
    if not isinstance(policy, str) or not _POLICY_ID.fullmatch(policy):
        raise ValueError(f"policy {policy!r} is not an id")
    return policy


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return a slot's part; raises what a damaged entry raises."""
    part = content[name]
    if part is not None and not isinstance(part, dict):
        raise ValueError(f"{name} {part!r} is not an object")
    return part


def _weights(fusion: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    return None if fusion is None else {name: float(value) for name, value in fusion.items()}


def _entry(slot: Slot) -> dict[str, Any]:
    return {
        "policy": slot.policy,
        "llm": slot.llm,
        "fusion": slot.fusion,
        "at": slot.at.isoformat(),
        "reason": slot.reason,
    }


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} is not a bundle ({error.strerror or error}): give its directory") from error
    except ValueError as error:
        raise BundleError(f"{file} is not JSON ({error}): restore the bundle from its source") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{file} is not a manifest: restore the bundle from its source")
    return manifest


def _verify_files(path: Path, files: Mapping[str, str]) -> None:
    if POLICY_FILE not in files:
        raise BundleError(f"bundle {path} lists no {POLICY_FILE}: train again")
    for name, expected in files.items():
        if Path(name).name != name:
            raise BundleError(f"bundle {path} lists {name!r}, which is not a plain file name: do not use it")
        file = path / name
        if not file.is_file():
            raise BundleError(f"bundle {path} lacks {name}: restore the bundle from its source")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != expected:
            raise BundleError(
                f"{file} has hash {found[:12]}, the manifest says {expected[:12]}: it was changed or damaged; "
                "restore the bundle from its source"
            )


def _content_id(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "id"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

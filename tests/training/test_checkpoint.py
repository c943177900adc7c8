from __future__ import annotations

import copy
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_writer import IDENTITY, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from structlog.testing import capture_logs

from training.dqn.checkpoint import KEPT, CheckpointStore, one_trainer
from training.errors import TrainingError

WRITER = Path(__file__).with_name("checkpoint_writer.py")


def same(left: Any, right: Any) -> bool:  # noqa: PLR0911 -- one line for each type
    """Equal in type and to the last bit, NaN included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        bits = (left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8))
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return math.isnan(left) == math.isnan(right) and (math.isnan(left) or repr(left) == repr(right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


NUMPY = arrays.arrays(
    dtype=st.sampled_from(["f4", "f8", "i4", "i8", "u4", "u8", "u1", "?", ">f8", "f2"]),
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
TENSORS = arrays.arrays(dtype=st.sampled_from(["f4", "f8", "i8", "u1", "?"]), shape=st.just((2, 3))).map(
    lambda array: torch.from_numpy(array.copy())
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text()
    | NUMPY.map(lambda array: array.astype(array.dtype.newbyteorder("=")))
    | TENSORS
    | st.floats(width=32).map(np.float32)
    | st.integers(0, 2**64 - 1).map(np.uint64)
)
STATES = st.dictionaries(
    st.text() | st.integers(),
    st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text() | st.integers() | st.sampled_from(["$array", "$items"]), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(state=STATES, update=st.integers(0, 10**9))
def test_what_is_read_is_what_was_written_to_the_last_bit(state: dict[Any, Any], update: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        CheckpointStore(Path(folder), IDENTITY).save(update, state)
        found = CheckpointStore(Path(folder), IDENTITY).latest()
    assert found is not None
    assert found[0] == update
    assert same(found[1], state)


def test_generators_and_an_optimiser_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    python, numpy, tensor = random.Random(3), np.random.default_rng(4), torch.Generator().manual_seed(5)
    weights = torch.nn.Parameter(torch.randn(7, generator=tensor))
    adam = torch.optim.AdamW([weights], lr=1e-3)
    weights.grad = torch.ones(7)
    adam.step()
    state = {
        "python": python.getstate(),
        "numpy": numpy.bit_generator.state,
        "torch": tensor.get_state(),
        "weights": weights,
        "adam": adam.state_dict(),
    }
    CheckpointStore(tmp_path, IDENTITY).save(1, state)
    found = CheckpointStore(tmp_path, IDENTITY).latest()
    assert found is not None
    back = found[1]
    other_python, other_numpy, other_tensor = random.Random(), np.random.default_rng(), torch.Generator()
    other_python.setstate(back["python"])
    other_numpy.bit_generator.state = back["numpy"]
    other_tensor.set_state(back["torch"])
    other = torch.nn.Parameter(back["weights"])
    other_adam = torch.optim.AdamW([other], lr=9.0)
    other_adam.load_state_dict(back["adam"])
    for parameter, optimiser in ((weights, adam), (other, other_adam)):
        parameter.grad = torch.full((7,), 0.3)
        optimiser.step()
    assert torch.equal(weights, other)
    assert python.random() == other_python.random()
    assert numpy.random() == other_numpy.random()
    assert torch.equal(torch.rand(3, generator=tensor), torch.rand(3, generator=other_tensor))


def test_bfloat16_comes_back_as_it_was(tmp_path: Path) -> None:
    tensor = torch.randn(5).to(torch.bfloat16)
    CheckpointStore(tmp_path, IDENTITY).save(1, {"half": tensor})
    found = CheckpointStore(tmp_path, IDENTITY).latest()
    assert found is not None
    assert same(found[1]["half"], tensor)


def test_what_a_checkpoint_holds_does_not_change_with_the_training(tmp_path: Path) -> None:
    store, weights = CheckpointStore(tmp_path, IDENTITY), torch.zeros(3)
    store.save(1, {"weights": weights})
    weights += 1.0
    found = store.latest()
    assert found is not None
    assert found[1]["weights"].tolist() == [0.0, 0.0, 0.0]
    found[1]["weights"] += 1.0  # and what was read can be trained on


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, object()]}}, r"state\.a\.b\[1\] is a object"),
        ({"a": np.array(["x"])}, r"state\.a is an array of <U1"),
        ({"a": {1.5: 2}}, r"state\.a has the key 1\.5"),
        ({"a": b"x"}, r"state\.a is a bytes"),
        ({"a": np.array([object()])}, r"state\.a is an array of object"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(state: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=where):
        CheckpointStore(tmp_path, IDENTITY).try_save(1, state)


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    store.check()
    assert store.latest() is None


def test_the_last_two_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    folders = [store.save(update, {"update": update}) for update in (10, 20, 30, 40)]
    assert sorted(store.folder.iterdir()) == folders[-KEPT:]


def test_the_same_update_can_be_written_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    for text in ("first", "second"):
        store.save(10, {"text": text})
    assert store.latest() == (10, {"text": "second"})


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    store.save(1, {})
    (store.folder / ".000002-000000000002.abc").mkdir()
    (store.folder / ".000002-000000000002.abc" / "state.json").write_text("half")
    store.save(2, {})
    assert [entry.name[0] for entry in store.folder.iterdir()] == ["0", "0"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def turn_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, turn_a_bit, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["state.json", "arrays.safetensors", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(harm: Any, name: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    store.save(1, state_of(1))
    harm(store.save(2, state_of(2)) / name)
    with capture_logs() as logs:
        found = CheckpointStore(tmp_path, IDENTITY).latest()
    assert found is not None
    assert found[0] == 1
    assert same(found[1], state_of(1))
    assert [line["event"] for line in logs] == ["checkpoint_damaged"]


def test_a_damaged_checkpoint_does_not_push_a_whole_one_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    whole = store.save(1, {})
    damaged = store.save(2, {})
    cut(damaged / "state.json")
    resumed = CheckpointStore(tmp_path, IDENTITY)
    resumed.latest()
    newest = resumed.save(2, {})
    assert sorted(store.folder.iterdir()) == [whole, newest]


def test_nothing_starts_from_scratch_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    for update in (1, 2):
        cut(store.save(update, {}) / "state.json")
    with pytest.raises(TrainingError, match=r"no checkpoint .* is whole .*start anew in another folder"):
        store.latest()


def test_a_checkpoint_of_another_training_is_refused_with_every_difference(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, {**IDENTITY, "data": "one"}).save(1, {})
    other: dict[str, Any] = copy.deepcopy(IDENTITY)
    other["configuration"]["training"]["seed"] = 2
    other["feature_spec"] = "other"
    other["table"] = "new"
    store = CheckpointStore(tmp_path, other)
    for ask in (store.latest, store.check, lambda: CheckpointStore(tmp_path, IDENTITY).check(other)):
        with pytest.raises(TrainingError) as refused:
            ask()
        lines = str(refused.value).splitlines()
        assert "is of another training" in lines[0]
        assert [line.strip() for line in lines[1:-1]] == [
            "configuration.training.seed: 1, now 2",
            'data: "one", now not there',
            'feature_spec: "abc", now "other"',
            'table: not there, now "new"',
        ]
        assert "start anew in another folder" in lines[-1]


def test_tuples_and_lists_are_the_same_identity(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, {"hidden": (32, 32)}).save(1, {})
    assert CheckpointStore(tmp_path, {"hidden": [32, 32]}).latest() == (1, {})


def test_an_identity_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="must be a JSON object"):
        CheckpointStore(tmp_path, {"gamma": math.nan})


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_leaves_the_one_before_and_the_training_goes_on(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, IDENTITY)
    store.save(1, state_of(1))
    with files_end_at(8192), capture_logs() as logs:
        assert not store.try_save(2, state_of(2))
        with pytest.raises(TrainingError, match=r"update 3 cannot be written .*File too large.*the one before stands"):
            store.save(3, state_of(3))
    assert store.failures == 2
    assert [(line["event"], line["failures"]) for line in logs] == [("checkpoint_failed", 1)]
    assert len(list(store.folder.iterdir())) == 1
    assert store.try_save(4, state_of(4))
    found = store.latest()
    assert found is not None
    assert found[0] == 4


def test_two_trainers_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    refused = pytest.raises(TrainingError, match="another process trains in")
    with one_trainer(tmp_path), refused, one_trainer(tmp_path):
        pass
    with one_trainer(tmp_path):
        pass


ON_A_FULL_DISK = """
mount -t tmpfs -o size=500k tmpfs full || exit 77
exec "$@"
"""
FILLS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from checkpoint_writer import IDENTITY, state_of
from training.dqn.checkpoint import CheckpointStore
from training.errors import TrainingError
store = CheckpointStore(Path("full"), IDENTITY)
store.save(1, state_of(1))
store.save(2, state_of(2))
Path("full/other").write_bytes(bytes(60_000))
try:
    store.save(3, state_of(3))
except TrainingError as error:
    print(error)
assert store.try_save(4, state_of(4)) is False
print(store.failures, store.latest()[0], len(list(store.folder.iterdir())))
Path("full/other").unlink()
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here: a small disk cannot be mounted")
    command = ["unshare", "--mount", "sh", "-c", ON_A_FULL_DISK, "sh", sys.executable, "-c", FILLS, str(WRITER.parent)]
    environ = {**os.environ, "PYTHONPATH": str(WRITER.parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode in {1, 77} and "Traceback" not in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "No space left on device): free some space; the one before stands untouched" in lines[0]
    assert lines[-1] == "2 2 2"


def kill_and_look(run: Path, seed: int) -> None:
    """Start the writer, kill it at a random instant, and check what it left."""
    rng = random.Random(seed)
    before = CheckpointStore(run, IDENTITY).latest()
    first = 1 if before is None else before[0] + 1
    environ = {**os.environ, "PYTHONPATH": str(WRITER.parents[2])}
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(run), str(first)], env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline())]
        try:
            process.wait(rng.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines()]
    found = CheckpointStore(run, IDENTITY).latest()
    assert found is not None, f"seed {seed}"
    assert found[0] in {said[-1], said[-1] + 1}, f"seed {seed}"
    assert same(found[1], state_of(found[0])), f"seed {seed}"


def test_a_kill_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    kill_and_look(tmp_path, 0)


@pytest.mark.slow
def test_kills_at_random_instants_always_leave_the_last_whole_checkpoint(tmp_path: Path) -> None:
    for seed in range(1, 21 if os.environ.get("TANDEM_FULL") else 6):
        kill_and_look(tmp_path, seed)

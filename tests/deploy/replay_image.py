"""Build an image without a container engine, and run what it starts as an engine would.

Run as root: `replay_image.py FOLDER IMAGE`. Each stage is a copy-on-write layer over this machine's own root, which
stands in for the base image; RUN lines are run by a shell whose root that is, COPY copies from the build context. Then
the image's entry point is started as process 1 of a process namespace of its own, as the image's user, on a read-only
root, in a network of its own, with the volume alone writable. Prints what was seen as JSON.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dockerfile import Dockerfile, Instruction, Stage, included, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
INHERITED = ("PATH", "PIP_*", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "http*_proxy")
"""What a builder passes on to the steps of a build."""
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HEALTHY_WITHIN_S = 90.0
STOPPED_WITHIN_S = 30.0


def sh(*words: str | Path, timeout: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


class Replay:
    """The layers of one build below a folder."""

    def __init__(self, folder: Path, dockerfile: Dockerfile) -> None:
        self.folder = folder
        self.dockerfile = dockerfile
        self.mounted: dict[str, Path] = {}

    def build(self, name: str) -> None:
        """Make one stage on top of those below it."""
        stage = self.dockerfile.stages[name]
        root = self._mount(name, self.dockerfile.chain(name)[:-1])
        self._hide_this_machine(root)
        environ, workdir = self.setting(name, upto=0)
        for number, instruction in enumerate(stage.instructions, start=1):
            if instruction.name == "COPY":
                self._copy(root, workdir, instruction)
            elif instruction.name == "WORKDIR":
                (root / instruction.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction.name == "RUN":
                line = f"cd {shlex.quote(workdir)} && {{ {instruction.text}\n}}"
                sh("chroot", root, "/bin/sh", "-c", line, env=environ)
            environ, workdir = self.setting(name, upto=number)

    def setting(self, name: str, upto: int | None = None) -> tuple[dict[str, str], str]:
        """Return environment and working directory after so many instructions of a stage; all, where None."""
        environ = {"PATH": BASE_PATH, "HOME": "/"}
        for pattern in INHERITED[1:]:
            expression = re.compile(pattern.replace("*", ".*"))
            environ |= {key: value for key, value in os.environ.items() if expression.fullmatch(key)}
        workdir = "/"
        chain = self.dockerfile.chain(name)
        for stage in chain:
            for instruction in stage.instructions[: upto if stage is chain[-1] else None]:
                if instruction.name in {"ENV", "ARG"}:
                    for key, value in instruction.pairs.items():
                        environ[key] = re.sub(r"\$(\w+)", lambda m: environ.get(m[1], ""), value)
                elif instruction.name == "WORKDIR":
                    workdir = instruction.text
        return environ, workdir

    def _mount(self, name: str, below: Sequence[Stage]) -> Path:
        layer = self.folder / name
        root, upper, work = layer / "root", layer / "upper", layer / "work"
        for path in (root, upper, work):
            path.mkdir(parents=True)
        if below:  # copied: an overlay refuses layers that lie within one another
            sh("cp", "--archive", f"{self.folder / below[-1].name / 'upper'}/.", upper)
        sh("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)
        sh("mount", "-t", "proc", "proc", root / "proc")
        sh("mount", "--rbind", "/dev", root / "dev")
        self.mounted[name] = root
        return root

    @staticmethod
    def _hide_this_machine(root: Path) -> None:
        """Leave nothing of the sources or of another installation where a step could find it by chance."""
        for path in (ROOT, Path(sys.prefix)):
            place = root / str(path).lstrip("/")
            if place.is_dir():
                sh("mount", "-t", "tmpfs", "tmpfs", place)

    def _copy(self, root: Path, workdir: str, instruction: Instruction) -> None:
        *sources, target = instruction.words
        origin = self.mounted[instruction.options["from"]] if "from" in instruction.options else ROOT
        place = root / os.path.normpath(os.path.join(workdir, target)).lstrip("/")  # noqa: PTH118 - of another root
        for name in sources:
            if origin == ROOT and name.removeprefix("./") not in included(ROOT / ".dockerignore"):
                raise SystemExit(f"line {instruction.line}: {name} is not in the build context")
            source = origin / name.lstrip("/")
            into = place / source.name if target.endswith("/") or len(sources) > 1 else place
            into.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():  # a folder's content is copied, as the format says
                ignored = shutil.ignore_patterns("__pycache__") if origin == ROOT else None
                shutil.copytree(source, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(source, into)


class Container:
    """The image's entry point as process 1, on a read-only root."""

    def __init__(self, replay: Replay, name: str) -> None:
        self.replay = replay
        self.stage: Stage = replay.dockerfile.stages[name]
        self.root = replay.mounted[name]
        self.environ, self.workdir = replay.setting(name)
        self.environ = {key: value for key, value in self.environ.items() if not key.startswith(("PIP_", "HTTP"))}
        chain = replay.dockerfile.chain(name)
        self.user = next(i.text for stage in reversed(chain) if (i := stage.last("USER")) is not None)
        entry = next(i for stage in reversed(chain) if (i := stage.last("ENTRYPOINT")) is not None)
        command = self.stage.last("CMD")
        self.command = [*entry.words, *(command.words if command is not None else [])]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = replay.folder / "container.log"
        volume = next(i.text for stage in chain if (i := stage.last("VOLUME")) is not None).lstrip("/")
        self.volume = replay.folder / "volume"
        shutil.copytree(self.root / volume, self.volume)
        about = (self.root / volume).stat()
        os.chown(self.volume, about.st_uid, about.st_gid)
        sh("mount", "-o", "remount,ro,bind", self.root)
        sh("mount", "--bind", self.volume, self.root / volume)
        sh("mount", "-t", "tmpfs", "tmpfs", self.root / "tmp")

    def as_user(self, words: Sequence[str]) -> list[str]:
        uid, _, gid = self.user.partition(":")
        rights = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs")
        inner = f"cd {shlex.quote(self.workdir)} && exec {shlex.join([*rights, '--bounding-set=-all', *words])}"
        return ["chroot", str(self.root), "/bin/sh", "-c", inner]

    def start(self) -> None:
        up = "import fcntl,socket,struct;fcntl.ioctl(socket.socket(),0x8914,struct.pack('16sh22x',b'lo',1))"
        line = (
            f"{shlex.join([sys.executable, '-c', up])} && mount -t proc proc {shlex.quote(str(self.root / 'proc'))}"
            f" && exec {shlex.join(self.as_user(self.command))}"
        )
        spaces = ("unshare", "--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*spaces, "/bin/sh", "-c", line], env=self.environ, stdout=log, stderr=log)

    @property
    def first(self) -> int:
        """The host's number of process 1."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        end = time.monotonic() + 10
        while not (found := children.read_text().split()) and time.monotonic() < end:
            time.sleep(0.02)
        return int(found[0])

    def inside(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as an engine's `exec` does."""
        enter = ["nsenter", f"--target={self.first}", "--net", "--pid", "--mount", "--ipc"]
        return subprocess.run(
            [*enter, *self.as_user(words)], env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )

    def become_healthy(self) -> float:
        """Ask the image's own health check until it is content; returns the seconds that took."""
        check = self.stage.last("HEALTHCHECK")
        assert check is not None
        return self.until_content(check.words)

    def until_content(self, words: Sequence[str]) -> float:
        """Run a command inside until its exit code is 0; returns the seconds that took."""
        began = time.monotonic()
        while time.monotonic() - began < HEALTHY_WITHIN_S:
            if self.inside(words).returncode == 0:
                return time.monotonic() - began
            time.sleep(0.5)
        raise SystemExit(f"{shlex.join(words)} is not content: {self.log.read_text()[-3000:]}")

    def stop(self, number: signal.Signals) -> tuple[int, float]:
        assert self.process is not None
        began = time.monotonic()
        os.kill(self.first, number)
        code = self.process.wait(STOPPED_WITHIN_S)
        return code, time.monotonic() - began

    def processes(self) -> list[tuple[str, str]]:
        """Return (state, name) of every process inside."""
        listed = self.inside(["sh", "-c", "cat /proc/[0-9]*/stat"]).stdout.splitlines()
        parsed = [re.match(r"\d+ \((.*)\) (\w)", line) for line in listed]
        return [(m[2], m[1]) for m in parsed if m is not None and m[1] not in {"cat", "sh"}]


def daemon_facts(container: Container) -> Mapping[str, Any]:
    container.start()
    facts: dict[str, Any] = {"healthy_s": container.become_healthy()}
    facts["ready_s"] = container.until_content(["tandem", "health", "--url", "http://127.0.0.1:8730/readyz"])
    facts["processes"] = container.processes()
    facts["who"] = container.inside(["id", "-u"]).stdout.strip()
    facts["code_writable"] = container.inside(["test", "-w", "/opt/tandem"]).returncode == 0
    facts["status"] = container.inside(["tandem", "status", "--config", "/etc/tandem/tandem.yaml"]).returncode
    backup = ["tandem", "ledger", "backup", "--config", "/etc/tandem/tandem.yaml", "--out", "backup"]
    facts["backup"] = container.inside(backup).returncode
    facts["stop"] = container.stop(signal.SIGTERM)
    facts["volume"] = sorted(path.name for path in container.volume.iterdir())
    container.start()  # the same volume, another container
    container.become_healthy()
    facts["again"] = container.stop(signal.SIGTERM)
    container.start()
    time.sleep(0.6)  # still starting: no handler of the daemon's is there yet
    facts["early_stop"] = container.stop(signal.SIGTERM)
    return facts


def main() -> None:
    folder, image = Path(sys.argv[1]), sys.argv[2]
    dockerfile = read_dockerfile(ROOT / "Dockerfile")
    replay = Replay(folder, dockerfile)
    began = time.monotonic()
    for name in dockerfile.needed(image):
        replay.build(name)
    facts: dict[str, Any] = {"built_s": time.monotonic() - began}
    packages = glob.glob(f"{replay.mounted[image]}/opt/tandem/lib/python3.*/site-packages/*.dist-info")  # noqa: PTH207 - of another root
    facts["installed"] = sorted(Path(path).name.partition("-")[0].lower() for path in packages)
    container = Container(replay, image)
    if image == "daemon":
        facts |= daemon_facts(container)
    else:
        container.start()
        assert container.process is not None
        facts["exit"] = container.process.wait(120)
    facts["log"] = container.log.read_text(encoding="utf-8", errors="replace")[-2000:]
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()

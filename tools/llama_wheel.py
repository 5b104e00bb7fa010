"""Install llama-cpp-python, built once for this machine and kept in the user's cache.

`python tools/llama_wheel.py` installs into the Python that runs it, `--venv DIR` into another one. The wheel is built
from source with all instructions of this CPU and without GCC's RTL dead-store elimination, which removes the stores of
the AMX tile configuration (GCC 12) and makes llama.cpp crash. pip's own wheel cache ignores CMAKE_ARGS, hence this one:
`$XDG_CACHE_HOME/edgevlm/wheels/KEY/`, where KEY covers package version, flags, compiler, CPU features and platform.
Standard library only, because it runs before anything is installed.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

PACKAGE = "llama-cpp-python"
CMAKE_ARGS = "-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS=-fno-dse"
LOG_TAIL_LINES = 40
SECONDS_BETWEEN_LINES = 60
ROOT = Path(__file__).resolve().parent.parent


class BuildError(Exception):
    """The wheel cannot be had; the message says why and what to do."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, help="install into this virtual environment, not the running Python")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt", help="where the version stands")
    parser.add_argument(
        "--add", type=Path, metavar="WHEEL", help="put a wheel built here with these flags in the cache"
    )
    options = parser.parse_args(arguments)
    try:
        run(options.venv, options.constraints, options.add)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def run(venv: Path | None, constraints: Path, add: Path | None) -> None:
    """Find or build the wheel, and install it unless it already is."""
    python = venv / "bin" / "python" if venv else Path(sys.executable)
    version = pinned_version(constraints)
    key = cache_key(version)
    folder = cache_folder(os.environ) / key
    if add is not None:
        store(add, folder)
        print(f"kept {add.name} as {key}")
        return
    wheel = cached_wheel(folder)
    if wheel is None:
        wheel = build(python, version, folder)
    if key in installed_from(python):
        print(f"{PACKAGE} {version} is installed")
        return
    install(python, wheel, constraints)
    print(f"installed {wheel.name}")


def pinned_version(constraints: Path) -> str:
    """The exact version that constraints.txt names."""
    try:
        text = constraints.read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(f"cannot read {constraints}: {error.strerror}") from error
    match = re.search(rf"^{PACKAGE}==(\S+)$", text, re.MULTILINE | re.IGNORECASE)
    if match is None:
        raise BuildError(f"{constraints} has no line {PACKAGE}==VERSION")
    return match[1]


def cache_folder(environment: "os._Environ[str] | dict[str, str]") -> Path:
    """The user's cache directory for wheels (XDG base directory specification)."""
    base = environment.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return home / "edgevlm" / "wheels"


def cache_key(version: str) -> str:
    """A folder name that changes with anything that changes the binary."""
    facts = {
        "version": version,
        "flags": CMAKE_ARGS,
        "compiler": compiler_version(),
        "cpu": cpu_features(),
        "platform": sysconfig.get_platform(),
        "libc": "-".join(platform.libc_ver()),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{PACKAGE}-{version}-{digest[:16]}"


def compiler_version() -> str:
    """Version lines of the compilers that CMake will take; an error if there is none."""
    lines = []
    for variable, default in (("CC", "cc"), ("CXX", "c++")):
        command = [*shlex.split(os.environ.get(variable, default)), "--version"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise BuildError(
                f"no working compiler: {' '.join(command)} failed; install one (Debian: apt install g++)"
            ) from error
        lines.append(output.splitlines()[0])
    return "; ".join(lines)


def cpu_features() -> str:
    """Architecture and instruction sets, which `-march=native` turns into code."""
    features: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                features.update(value.split())
    except OSError:
        features.add(platform.processor())
    return " ".join([platform.machine(), *sorted(features)])


def cached_wheel(folder: Path) -> Path | None:
    """The wheel kept under a key."""
    return next(iter(sorted(folder.glob("*.whl"))), None)


def store(wheel: Path, folder: Path) -> Path:
    """Put a wheel into the cache. Whoever comes first wins; nobody sees half a wheel."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            temporary.chmod(0o755)
            shutil.copyfile(wheel, temporary / wheel.name)
            temporary.rename(folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if cached_wheel(folder) is None:
                raise
    except OSError as error:
        raise BuildError(f"cannot keep the wheel in {folder}: {error.strerror}") from error
    return folder / wheel.name


def build(python: Path, version: str, folder: Path) -> Path:
    """Build the wheel with pip, showing the time; returns it from the cache."""
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    environment = {**os.environ, "CMAKE_ARGS": CMAKE_ARGS, "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
    with tempfile.TemporaryDirectory(prefix="edgevlm-llama-") as scratch:
        log = Path(scratch) / "build.log"
        command = [str(python), "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "--no-binary", PACKAGE]
        command += ["--wheel-dir", scratch, f"{PACKAGE}=={version}"]
        status = watch(command, environment, log)
        wheel = next(iter(sorted(Path(scratch).glob("*.whl"))), None)
        if status != 0 or wheel is None:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
            raise BuildError(
                f"{tail}\nbuilding {PACKAGE} {version} failed (exit code {status}); its last lines are above"
            )
        return store(wheel, folder)


def watch(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Run a command with its output in `log`; a line about the time at the start and every minute."""
    started = time.monotonic()
    print(f"building {PACKAGE}, once for this machine (5 to 10 minutes on 2 cores) ...", flush=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while True:
            try:
                return process.wait(SECONDS_BETWEEN_LINES)
            except subprocess.TimeoutExpired:
                print(f"  still building, {(time.monotonic() - started) / 60:.0f} min", flush=True)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def installed_from(python: Path) -> str:
    """The URL that pip recorded for the installed package (PEP 610), which holds the key; empty if there is none."""
    code = f"import importlib.metadata as m; print(m.distribution({PACKAGE!r}).read_text('direct_url.json'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout


def install(python: Path, wheel: Path, constraints: Path) -> None:
    """Install the wheel over whatever build is there, its dependencies as constrained."""
    base = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", str(constraints)]
    for extra in (["--force-reinstall", "--no-deps"], []):
        result = subprocess.run([*base, *extra, str(wheel)], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"{result.stdout}{result.stderr}\ninstalling {wheel.name} failed; its output is above")


if __name__ == "__main__":
    sys.exit(main())

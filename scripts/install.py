"""Install Limner into the folder `.venv`, unless it is there and up to date. The start scripts run this at each start.

It needs a Python, nothing else. Where that one is too old or too new for Limner, or lacks what makes environments, uv
(https://docs.astral.sh/uv/) brings another. Torch is that of PyTorch's index for this machine's graphics card, or of
PyPI where that index cannot be reached; LIMNER_TORCH_INDEX names another index. All other packages have the versions of
`requirements.lock`, each checked by its hash.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)  # as in pyproject.toml
BROUGHT = "3.13"  # the Python that uv brings
LOCK = ROOT / "requirements.lock"
PYPI = "https://pypi.org/simple"
RESUMES = (25, 1)  # version of pip that continues downloads
BEGUN = "begun"  # in place of the packages that are installed
PATIENCE = 5  # seconds until an index counts as unreachable
BY_TORCH = re.compile(r"(torch|triton|nvidia-|cuda-)")  # what each build of torch has its own of
BROKEN = re.compile(  # in pip's log
    "IncompleteRead|incomplete-download|located at .* is invalid|ReadTimeout|timed out"
    "|Connection(Reset|Aborted| broken)"
)
START = "start.bat" if os.name == "nt" else "./start.sh"
FITS = f"import sys, pip; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"


class InstallError(Exception):
    """Limner cannot be installed; says why, and what to do."""


class MissingError(InstallError):
    """A package index lacks something for this Python and system."""


def main() -> int:
    """Install what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description="Install Limner, or bring its installation up to date.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--build", default="", help="build of torch: cu130, cu126 or cpu (default: by the card)")
    parser.add_argument("--needs-only", action="store_true", help="install what Limner needs, but not itself")
    options = parser.parse_args()
    try:
        make_environment(options.venv)
        python = program(options.venv, "python")
        if Path(sys.prefix).resolve() != options.venv.resolve():  # its Python is the one that fits
            return subprocess.call([str(python), "-X", "utf8", __file__, *sys.argv[1:]])
        install(options.venv, options.build, needs_only=options.needs_only)
    except InstallError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def program(venv: Path, name: str) -> Path:
    """Return the path of a program of an environment."""
    return venv / "Scripts" / f"{name}.exe" if os.name == "nt" else venv / "bin" / name


def make_environment(venv: Path) -> None:
    """Make an environment, unless there is a complete one of a Python that fits.

    Raises:
        InstallError: nothing on this machine can.
    """
    python = program(venv, "python")
    if _succeeds(python, "-c", FITS):
        return
    if venv.exists():
        print("The environment in .venv is not complete. Making it again.", flush=True)
        shutil.rmtree(venv, ignore_errors=True)
    reason = ""
    if _fits() and _has("ensurepip"):
        subprocess.call([sys.executable, "-m", "venv", str(venv)])
    else:
        with tempfile.TemporaryDirectory() as folder:
            if uv := shutil.which("uv") or _fetched_uv(Path(folder)):
                version = sys.executable if _fits() else BROUGHT
                print(f"Making an environment of Python {version} with uv.", flush=True)
                # The certificates that the system trusts, as pip does; its name depends on the version of uv.
                certificates = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
                command = [uv, "venv", "--quiet", "--seed", "--python", version, str(venv)]
                subprocess.call(command, env={**os.environ, **certificates})
                reason = f"uv could not make an environment of Python {version}; its messages are above. "
    if not _succeeds(python, "-c", FITS):
        shutil.rmtree(venv, ignore_errors=True)
        raise InstallError(reason + _without_environment())


def _fits() -> bool:
    return OLDEST <= sys.version_info[:2] <= NEWEST


def _fetched_uv(folder: Path) -> str | None:
    """Install uv into a folder with the pip of this Python; return its path, or None if that fails."""
    pip = [sys.executable, "-m", "pip"]
    if _has("ensurepip"):
        subprocess.call([sys.executable, "-m", "venv", str(folder / "venv")])
        pip = [str(program(folder / "venv", "python")), "-m", "pip"]
    elif not _has("pip"):
        return None
    subprocess.call([*pip, "install", "--quiet", "--disable-pip-version-check", "--target", str(folder), "uv"])
    return shutil.which("uv", path=str(folder / "bin"))


def _without_environment() -> str:
    here = "{}.{}".format(*sys.version_info[:2])
    uv = f"or install uv (https://docs.astral.sh/uv/), which brings one. Then run {START} again."
    if not _fits():
        wanted = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
        return (
            f"Limner needs Python {wanted}, and this one is {here}. Get it from https://www.python.org/downloads/, {uv}"
        )
    if shutil.which("apt-get"):
        return (
            f"This Python {here} cannot make environments: its package python3-venv is missing. Install it with "
            f"sudo apt install python{here}-venv, or install uv (https://docs.astral.sh/uv/). Then run {START} again."
        )
    return f"This Python {here} cannot make environments. Get another from https://www.python.org/downloads/, {uv}"


def _has(module: str) -> bool:
    return _succeeds(sys.executable, "-c", f"import {module}")


def _succeeds(*command: str | Path) -> bool:
    try:
        return subprocess.run([str(part) for part in command], capture_output=True).returncode == 0
    except OSError:
        return False


def install(venv: Path, build: str = "", *, needs_only: bool = False) -> None:
    """Install torch and the locked packages into an environment, unless they are there.

    Args:
        venv: its folder.
        build: of torch; "" = the one for this machine's card.
        needs_only: leave Limner itself out.

    Raises:
        InstallError: something cannot be downloaded or installed, and Limner cannot start without it.
    """
    stamp = venv / "installed.json"
    before = _read(stamp)
    source = _install_torch(venv, build, before.get("torch", ""))
    catalogs = sorted(ROOT.glob("trainer/languages/*/LC_MESSAGES/*.po"))  # compiled as Limner is installed
    contents = [path.read_bytes() for path in (ROOT / "pyproject.toml", LOCK, *catalogs)]
    wanted = hashlib.sha256(b"".join(contents)).hexdigest()
    if before == {"torch": source, "packages": wanted}:
        return
    if before.get("packages") != wanted:
        # Where a start was killed while it copied packages, pip takes half a package for a whole one.
        again = ["--force-reinstall"] if before.get("packages") == BEGUN else []
        _write(stamp, {"torch": source, "packages": BEGUN})
        requirements = venv / "requirements.txt"
        requirements.write_text(_locked_without_torch(), encoding="utf-8")
        _pip(venv, "--require-hashes", "--no-deps", "--only-binary", ":all:", *again, "-r", str(requirements))
        if not needs_only:
            _pip(venv, "--no-deps", "-e", str(ROOT))
    _write(stamp, {"torch": source, "packages": wanted})


def _install_torch(venv: Path, build: str, before: str) -> str:
    """Install the torch that suits this machine, unless it is there; return the index that it is from.

    Raises:
        InstallError: it cannot be installed, and there is no other to start with.
    """
    installed, locked = _torch(venv), _locked_torch()
    source = _choose_source(venv, build, before)
    if source == before and installed:
        return before
    name = "PyPI" if source == PYPI else source
    print(f"Installing torch from {name}, then Limner. This takes some minutes and several GB.", flush=True)
    _upgrade_pip(venv)
    again = ["--force-reinstall"] if installed else []
    own = os.environ.get("LIMNER_TORCH_INDEX")
    try:
        if source == PYPI:
            _pip(venv, *again, f"torch=={locked}")
        else:
            _pip(venv, *again, "--index-url", source, "torch>=2.6" if own else f"torch=={locked}")
    except MissingError as error:
        if source in (own, PYPI):
            raise
        print(f"{error}\n{_meaning_of_pypi()}", flush=True)
        _pip(venv, *again, f"torch=={locked}")
    except InstallError as error:
        if installed != locked:
            raise
        print(f"\n{error}\nLimner starts with the torch that is installed.", flush=True)
        return before
    return source


def _choose_source(venv: Path, build: str, before: str) -> str:
    """Return the index to take torch from: the one before, if its torch suits this machine or nothing better is there.

    Says what is special about the others.
    """
    sys.path.insert(0, str(ROOT))
    from trainer.machine import nvidia, other_cards  # which need no package

    if own := os.environ.get("LIMNER_TORCH_INDEX"):
        return own
    cards = nvidia.detected()
    is_current = _torch(venv) == _locked_torch()
    is_unused = is_current and cards and nvidia.explain(cards[0], nvidia.built_for(_site(venv) / "torch/version.py"))
    if is_current and before and not is_unused:
        return before
    if platform.system() == "Darwin":  # which has one build
        return PYPI
    if is_unused:
        print(f"The installed torch does not use {cards[0].name}.", flush=True)
    elif not cards and (advice := other_cards.advice()):
        print(advice, flush=True)
    index = f"{nvidia.INDEX}{build or (nvidia.best_build(cards[0]) if cards else 'cpu')}"
    if reach(index):
        print(f"{index} cannot be reached. {_meaning_of_pypi()}", flush=True)
        return PYPI
    return index


def _meaning_of_pypi() -> str:
    if os.name == "nt":
        return "Torch is taken from PyPI, whose builds for Windows use the processor only, not the graphics card."
    return (
        "Torch is taken from PyPI, whose build is for NVIDIA cards since the RTX 20 series with a driver from 580 on. "
        "On other machines it uses the processor, and takes several GB more than it needs there."
    )


def _upgrade_pip(venv: Path) -> None:
    """Upgrade pip to one that continues a download where it broke off; without it, downloads begin again."""
    if _pip_version(venv) < RESUMES:
        with contextlib.suppress(InstallError):
            _pip(venv, "--upgrade", "pip>={}.{}".format(*RESUMES))


def _pip(venv: Path, *arguments: str) -> None:
    """Install with the pip of an environment.

    Raises:
        InstallError: it failed; says why, as far as that can be known.
    """
    options = ["--disable-pip-version-check", "--no-input", "--no-compile"]  # Python compiles what is imported
    if _pip_version(venv) >= RESUMES:
        options += ["--resume-retries", "50"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [str(program(venv, "python")), "-m", "pip", "install", *options, "--log", str(log), *arguments]
        if subprocess.call(command) == 0:
            return
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    index = arguments[arguments.index("--index-url") + 1] if "--index-url" in arguments else _package_index(venv)
    _raise_reason(index, text)


def _raise_reason(index: str, log: str) -> NoReturn:
    """Raise the error that says why pip failed: a full disk, no connection, a proxy, a missing package, a download."""
    host = urlsplit(index).hostname or index
    if "No space left on device" in log:
        raise InstallError(f"The disk is full. Free some space, then run {START} again.")
    if "CERTIFICATE_VERIFY_FAILED" in log:
        raise InstallError(
            f"The certificate of {host} is not trusted: mostly a proxy that reads along. Ask its administrator for its "
            f"certificate, name that with pip config set --user global.cert FILE, then run {START} again."
        )
    if reason := reach(index):
        raise InstallError(reason)
    if missing := re.search(r"No matching distribution found for (\S+)", log):
        system = f"Python {'{}.{}'.format(*sys.version_info[:2])} on {platform.system()} {platform.machine()}"
        raise MissingError(f"{host} has no {missing[1]} for {system}. {_other_ways()}")
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in log:
        raise InstallError(
            f"{host} delivers other files than those that Limner was tested with. Nothing was installed."
        )
    if BROKEN.search(log):
        raise InstallError(f"The download from {host} broke off. Run {START} again: files that have arrived are kept.")
    raise InstallError(f"pip could not install Limner; its messages are above. Run {START} again, or report them.")


def _other_ways() -> str:
    return "Name an index that has it with LIMNER_TORCH_INDEX, or use another Python of those that Limner runs on."


def reach(index: str) -> str:
    """Return "" if a package index answers at all, else a sentence that says why not: the network, or a proxy."""
    host = urlsplit(index).hostname
    proxy = urllib.request.getproxies().get(urlsplit(index).scheme, "")
    if proxy and not urllib.request.proxy_bypass(host or ""):
        through = urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname
        reason = (
            f"The proxy {through} does not lead to {host}. Check it in HTTPS_PROXY, with its user and password if it "
            f"needs them, or ask its administrator. Then run {START} again."
        )
    else:
        reason = (
            f"There is no connection to {host}. Check the network; where a proxy leads out of it, name that in "
            f"HTTPS_PROXY. Then run {START} again."
        )
    try:
        urllib.request.urlopen(f"{index.rstrip('/')}/pip/", timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        return reason if error.code == 407 else ""
    except urllib.error.URLError as error:
        # pip has certificates of its own, and judges by itself.
        return "" if isinstance(error.reason, ssl.SSLCertVerificationError) else reason
    except OSError:
        return reason
    return ""


def _package_index(venv: Path) -> str:
    """Return the index that pip takes packages from."""
    if named := os.environ.get("PIP_INDEX_URL"):
        return named
    command = [str(program(venv, "python")), "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip() or PYPI


def _pip_version(venv: Path) -> tuple[int, int]:
    versions = [re.match(r"pip-(\d+)\.(\d+)", folder.name) for folder in _site(venv).glob("pip-*.dist-info")]
    return max(((int(version[1]), int(version[2])) for version in versions if version), default=(0, 0))


def _site(venv: Path) -> Path:
    """Return the folder of an environment's packages."""
    if os.name == "nt":
        return venv / "Lib" / "site-packages"
    return next(venv.glob("lib/python3*/site-packages"), venv / "lib")


def _torch(venv: Path) -> str:
    """Return the version of the torch that is installed, without its build; "" if there is none, or half of one."""
    records = _site(venv).glob("torch-*.dist-info/RECORD")  # pip writes it last
    return next((record.parent.name.split("-")[1].split(".dist")[0].split("+")[0] for record in records), "")


def _locked_torch() -> str:
    pinned = re.search(r"(?m)^torch==(\S+)", LOCK.read_text(encoding="utf-8"))
    assert pinned, "requirements.lock names torch"
    return pinned[1]


def _locked_without_torch() -> str:
    """Return the lock file without torch and what only comes with it, of which each build has its own."""
    packages = re.split(r"\n(?=\S)", LOCK.read_text(encoding="utf-8"))
    return "\n".join(package for package in packages if not BY_TORCH.match(package)) + "\n"


def _read(stamp: Path) -> dict[str, str]:
    try:
        return dict(json.loads(stamp.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _write(stamp: Path, content: dict[str, str]) -> None:
    stamp.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

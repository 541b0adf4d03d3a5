"""Make torchvision importable in this environment; part of set-up (`make`), standard library only.

Package indexes serve torchvision, torchaudio and torchcodec built for CUDA, which cannot load
beside a CPU build of torch. torchvision is needed (the Qwen3-VL processor imports it) and its
Python code suffices, so it gets an import hook. torchaudio and torchcodec are not needed and break
transformers where present, so they go; so does triton, a gigabyte that nothing uses without a GPU.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK_SOURCE = Path(__file__).with_name("torchvision_hook.py")
HOOK_MODULE = "embed_rl_torchvision_hook"
UNNEEDED = ("torchaudio", "torchcodec", "triton")
PROBE_TIMEOUT_S = 600

# Without the hook, so that the answer is about torchvision itself. `find_spec` tells "not
# installed" from "broken" without running anything.
_PROBE = f"""
import importlib, importlib.util, json, sys
if sys.argv[1] == "native":
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != {HOOK_MODULE!r}]
def probe(name):
    if importlib.util.find_spec(name) is None:
        return "missing"
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
    return "ok"
found = {{name: probe(name) for name in ("torch", *sys.argv[2:])}}
if found["torch"] == "ok":
    import torch
    found["cuda"] = torch.version.cuda or ""
print("probe:" + json.dumps(found))
"""


def probe_imports(python: str, names: tuple[str, ...], *, with_hook: bool) -> dict[str, str]:
    """Import ``names`` and torch in a fresh ``python``; say "ok", "missing" or the error of each.

    "cuda" holds torch's CUDA version, empty for a CPU build, and is absent where torch fails.
    """
    mode = "hooked" if with_hook else "native"
    run = subprocess.run(
        [python, "-W", "ignore", "-c", _PROBE, mode, *names],
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
        check=False,
    )
    for line in run.stdout.splitlines():
        if line.startswith("probe:"):
            return json.loads(line.removeprefix("probe:"))
    last_words = (run.stderr.strip().splitlines() or ["no output"])[-1]
    raise RuntimeError(
        f"importing {', '.join(names)} ended the process with status {run.returncode}: {last_words}"
    )


def hook_files(site_packages: Path) -> tuple[Path, Path]:
    """Return where the hook's module and its `.pth` line live."""
    return site_packages / f"{HOOK_MODULE}.py", site_packages / f"{HOOK_MODULE}.pth"


def write_hook(site_packages: Path) -> bool:
    """Install the hook; return whether anything had to change."""
    module, pth = hook_files(site_packages)
    source = HOOK_SOURCE.read_text(encoding="utf-8")
    line = f"import {HOOK_MODULE}\n"
    wanted = ((module, source), (pth, line))
    if all(path.is_file() and path.read_text(encoding="utf-8") == text for path, text in wanted):
        return False
    for path, text in wanted:
        path.write_text(text, encoding="utf-8")
    return True


def remove_hook(site_packages: Path) -> bool:
    """Take the hook out; return whether there was one."""
    present = [path for path in hook_files(site_packages) if path.is_file()]
    for path in present:
        path.unlink()
    return bool(present)


def mend(python: str, site_packages: Path) -> str:
    """Bring torchvision into a state that imports; return one line that says what was done.

    Raises:
        RuntimeError: torchvision fails for another reason than a mismatched build.
    """
    native = probe_imports(python, ("torchvision",), with_hook=False)
    if native["torch"] != "ok":
        raise RuntimeError(f"torch itself does not import: {native['torch']}")
    if native["torchvision"] in ("ok", "missing"):
        removed = remove_hook(site_packages)
        state = "imports as installed" if native["torchvision"] == "ok" else "is not installed"
        return f"torchvision {state}; " + ("mend removed" if removed else "nothing to mend")
    changed = write_hook(site_packages)
    mended = probe_imports(python, ("torchvision",), with_hook=True)
    if mended["torchvision"] != "ok":
        remove_hook(site_packages)
        raise RuntimeError(
            f"torchvision does not import ({native['torchvision']}) and the import hook does not "
            f"help ({mended['torchvision']}). Install the torchvision that belongs to your torch."
        )
    return "torchvision mended for this torch" if changed else "torchvision already mended"


def remove_unneeded(python: str) -> tuple[str, ...]:
    """Uninstall, beside a CPU torch, the CUDA packages it cannot use; return their names."""
    outcomes = probe_imports(python, UNNEEDED, with_hook=True)
    if outcomes.get("cuda"):
        return ()
    # triton imports well enough without a GPU; it goes for its size, and because libraries that
    # find it try to use it.
    keep = {
        "torchaudio": ("ok", "missing"),
        "torchcodec": ("ok", "missing"),
        "triton": ("missing",),
    }
    names = tuple(name for name in UNNEEDED if outcomes[name] not in keep[name])
    if names:
        pip = [python, "-m", "pip", "uninstall", "-q", "-y", "--disable-pip-version-check"]
        subprocess.run([*pip, *names], check=True)
    return names


def main() -> int:
    """Mend the environment this interpreter runs in."""
    site_packages = Path(sysconfig.get_paths()["purelib"])
    if sys.prefix == sys.base_prefix:
        print("mend_torchvision: run me with the Python of a virtual environment", file=sys.stderr)
        return 2
    try:
        removed = remove_unneeded(sys.executable)
        said = mend(sys.executable, site_packages)
    except RuntimeError as error:
        print(f"mend_torchvision: {error}", file=sys.stderr)
        return 1
    print(said + (f"; removed unused {', '.join(removed)}" if removed else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Build the wheel, install it alone into an empty environment, and import every module from there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import importlib, pathlib, pkgutil, sys
import armd, armd.report
assert pathlib.Path(armd.__file__).is_relative_to(sys.argv[1]), armd.__file__
names = [m.name for m in pkgutil.walk_packages(armd.__path__, "armd.")]
for name in names:
    importlib.import_module(name)
assert "<html" in armd.report.render({"title": "wheel"}).lower()
optional = {"datasets", "pyarrow", "tensorboard"} & set(sys.modules)
assert not optional, f"imported without being asked for: {optional}"
print(f"wheel: {len(names)} modules imported, armd {armd.__version__}")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)]
        built = subprocess.run(build, capture_output=True, text=True)
        if built.returncode:
            sys.exit(f"the wheel does not build:\n{built.stdout}{built.stderr}")
        wheel = next(Path(folder).glob("*.whl"))
        site = Path(folder) / "site"
        zipfile.ZipFile(wheel).extractall(site)
        # Dependencies come from this environment; the package itself only from the wheel.
        subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, folder], check=True, cwd=folder, env={"PYTHONPATH": str(site)}
        )


if __name__ == "__main__":
    main()

"""The libraries that the benchmarks put beside ours: `make bench` and `make compare` install them for themselves."""

import importlib.metadata

VERSIONS = {"torchebm": "0.8.9", "ebmkit": "0.16.0"}


def missing(*names: str) -> dict[str, str]:
    """One sentence for each of the libraries that cannot be compared with: it is not there, or another version."""
    found = {}
    for name in names:
        try:
            if (version := importlib.metadata.version(name)) != VERSIONS[name]:
                found[name] = f"this comparison is with {name} {VERSIONS[name]}; installed is {version}"
        except importlib.metadata.PackageNotFoundError:
            found[name] = f"{name} is not installed: make bench and make compare bring it for themselves"
    return found

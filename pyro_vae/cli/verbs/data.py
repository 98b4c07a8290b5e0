"""``pyro-vae data``."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.cli.flags import nearest


def run_data(
    action: str = "list", name: str | None = None, /, *, data_dir: Path | None = None
) -> int:
    """List, download and verify data sets.

    Args:
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
    """
    actions = ("list", "get", "verify")
    if action not in actions:
        raise ValueError(nearest(action, actions))
    if action != "list" and name is None:
        raise ValueError(f"{action} needs the name of a data set; pyro-vae data list shows them")
    from pyro_vae import datasets

    if action == "list" or name is None:
        if name is not None:
            raise ValueError(f"list takes no name, got {name!r}")
        rows = [("name", "files", "size", "here", "what")]
        for entry in datasets.available(data_dir):
            size = "?" if entry.bytes is None else f"{entry.bytes / 1e6:.1f} MB"
            here = "yes" if entry.present else "no"
            rows.append((entry.name, str(entry.files), size, here, entry.what))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            print("  ".join([*cells, row[-1]]))
        return 0
    if action == "get":
        fetched = datasets.get(name, data_dir)
        for file in fetched:
            print(f"{file.path}: {file.bytes:,} bytes, {file.source or 'was there and is right'}")
        if not fetched:
            print(f"{name} comes with a library, there is nothing to download")
        return 0
    found = datasets.verify(name, data_dir)
    for each in found:
        print(f"{each.path}: {each.status}{f': {each.detail}' if each.detail else ''}")
    if not found:
        print(f"{name} comes with a library, there is nothing to verify")
    return 0 if all(each.status == "ok" for each in found) else 1

"""One file a program; each has ``build(data_dim, *, ...) -> nn.Module``.

The folder stands at the top of the repository and is installed as ``pyro_vae.models`` (a symlink
makes it so). To add a model, add a file.
"""

if __name__ != "pyro_vae.models":
    # A second copy of a model would be another class: isinstance and saved runs would not know it.
    raise ImportError(
        f"models/ was imported as {__name__!r}, but its name is 'pyro_vae.models': write "
        "`from pyro_vae.models import ...`, and run `pip install -e .` if pyro_vae is not found."
    )

"""Sliders over latents, and live what they decode to: for notebooks."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_vae import errors
from pyro_vae.plotting.figures import COLOURS, new_figure
from pyro_vae.plotting.images import column_names, image_shape_of, images_of
from pyro_vae.plotting.programs import Latent, latent_of
from pyro_vae.plotting.walks import ordered

QUANTILES = np.linspace(0.001, 0.999, 999)  # that sliders go through
STEP = 0.01
SIDE = 280  # pixels of an image, at least
MOST_BARS = 40


@dataclass(frozen=True)
class Explorer:
    """Sliders and a picture; a notebook shows it where it is the last line of a cell.

    Attributes:
        sliders: one for each latent that can be moved: widgets whose value is a quantile of the
            prior.
        picture: the widget with what is decoded, a PNG.
        told: the widget with the values of the latents, in words.
        buttons: "start" and "draw of the prior".
        box: all of them together.
        latent: what is explored.
    """

    sliders: list[Any]
    picture: Any
    told: Any
    buttons: list[Any]
    box: Any
    latent: Latent

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)


def explore(
    run: Any,
    x: Any = None,
    *,
    datum: int | None = None,
    most: int = 10,
    site: str | None = None,
    observed: str | None = None,
    image_shape: Any = None,
    seed: int = 0,
) -> Explorer:
    """Move the latents of a program by sliders, and see live what they decode to.

    A slider goes through the quantiles of the prior.  With data, the latents that these move most
    come first, and those beyond ``most`` stay where they start: at the prior's median, or at the
    posterior mean of a datum.  Rows that are no images are drawn as bars, a column each.

    Args:
        run: a run or a program.
        x: data, to order the latents by; needed as ``like`` is of
            :func:`pyro_vae.plotting.latent_manifold`.
        datum: the number of a row of x, from whose posterior mean to start.
        most: sliders, at most.
        site: which latent, where a datum has several.
        observed: which observed site, where there are several.
        image_shape: as of :func:`pyro_vae.plotting.reconstructions`.
        seed: of the button that draws from the prior.

    Returns:
        :class:`Explorer`.

    Raises:
        ImportError: without ipywidgets.
        ValueError: a latent whose numbers cannot be moved one at a time.
    """
    try:
        import ipywidgets as widgets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            f"pv.explore shows widgets of a notebook ({error}), expected ipywidgets: pip install "
            "ipywidgets"
        ) from error
    most, seed = errors.whole("most", most), errors.seed_number(seed)
    latent = latent_of(run, x, site, observed)
    walk = latent.marginals(QUANTILES)  # (999, J)
    order, start = ordered(latent, x, datum)
    order = order[:most]
    draw = _drawer(latent, image_shape, getattr(x, "columns", None))
    begin = [float(np.interp(start[j], walk[:, j], QUANTILES)) for j in order]
    sliders = [
        widgets.FloatSlider(
            value=place, min=QUANTILES[0], max=QUANTILES[-1], step=STEP,
            description=latent.names[j], readout_format=".2f", continuous_update=True,
        )
        for j, place in zip(order, begin, strict=True)
    ]  # fmt: skip
    picture, told = widgets.Image(format="png"), widgets.HTML()
    again, random = widgets.Button(description="start"), widgets.Button(description="draw of prior")
    held = {"quiet": False}

    def show(_: Any = None) -> None:
        if held["quiet"]:
            return
        z = start.copy()
        for slider, j, place in zip(sliders, order, begin, strict=True):
            moved = not math.isclose(slider.value, place, abs_tol=STEP / 1000)
            z[j] = np.interp(slider.value, QUANTILES, walk[:, j]) if moved else start[j]
        picture.value = draw(z)
        said = ", ".join(f"{latent.names[j]} = {z[j]:.2f}".replace("-", "−") for j in order)
        told.value = said

    def put(values: list[float]) -> None:
        """All sliders at once, which is one picture and not one for each."""
        held["quiet"] = True
        for slider, value in zip(sliders, values, strict=True):
            slider.value = value
        held["quiet"] = False
        show()

    rng = np.random.default_rng(seed)
    again.on_click(lambda _: put(begin))
    random.on_click(lambda _: put(list(rng.uniform(QUANTILES[0], QUANTILES[-1], len(sliders)))))
    for slider in sliders:
        slider.observe(show, names="value")
    show()
    left = widgets.VBox([*sliders, widgets.HBox([again, random]), told])
    box = widgets.HBox([left, picture])
    return Explorer(sliders, picture, told, [again, random], box, latent)


def _drawer(latent: Latent, image_shape: Any, columns: Any) -> Callable[[np.ndarray], bytes]:
    """A function from a point (J,) to a PNG, on one scale for all points."""
    middle = latent.marginals(np.array([0.02, 0.5, 0.98]))
    values = latent.decoded(middle)
    shape = image_shape_of(values.shape[1:], image_shape, columns)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if shape is not None:
        return lambda z: _image(images_of(latent.decoded(z[None]), shape)[0], low, high)
    number = math.prod(values.shape[1:])
    if number > MOST_BARS:
        raise ValueError(
            f"a datum has {number} numbers and is no image, expected one, or at most {MOST_BARS} "
            "columns: pass image_shape=(height, width)"
        )
    names = column_names(columns, number)
    return lambda z: _bars(latent.decoded(z[None]).ravel(), names, low, high)


def _image(image: np.ndarray, low: float, high: float) -> bytes:
    from PIL import Image

    grey = np.clip(255 * (image - low) / max(high - low, 1e-12), 0, 255).astype(np.uint8)
    times = max(1, -(-SIDE // max(grey.shape[:2])))
    large = Image.fromarray(grey).resize(
        (grey.shape[1] * times, grey.shape[0] * times), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    return buffer.getvalue()


def _bars(values: np.ndarray, names: list[str], low: float, high: float) -> bytes:
    figure, axes = new_figure(width=5.0, height=max(2.4, 1 + 0.3 * len(names)))
    axis = axes[0, 0]
    axis.barh(range(len(values)), values, color=COLOURS[0])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    span = 0.1 * (high - low)
    axis.set_xlim(min(low - span, 0, values.min()), max(high + span, 0, values.max()))
    axis.set_xlabel("mean of p(x | z)")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    return buffer.getvalue()

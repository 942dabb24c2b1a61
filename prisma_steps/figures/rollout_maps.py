"""What reaches a token through all layers so far: attention rollout, over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.one_image import image_ids, pixels_of
from prisma_steps.figures.style import FigureParams, Plot, figure, require
from prisma_steps.figures.token_maps import Look, draw_maps, of_query, query_name, tokens_of
from prisma_steps.schema import Attention, Images
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr

OF = "rollout_maps"


class Params(FigureParams):
    """Which images, and which token."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    image: int | str | list[int | str] | None = Field(
        None, description="an image or a list of them, by place among those kept, or by id; all when null"
    )
    query: Literal["cls"] | Annotated[list[int], Field(min_length=2, max_length=3)] = Field(
        "cls", description="the token: cls, or [row, column] of a patch; [frame, row, column] of clips"
    )


@figure(inputs={"attention": Attention, "images": Images})
def rollout_maps(attention: xr.Dataset, images: xr.Dataset, params: Params) -> Plot:
    """Draw the attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928) of one token, one map a layer.

    Raises:
        StepError: when no rollout was kept, the image or the patch is not there, or the maps do not fit on a
            page.
    """
    if "attention_rollout" not in attention:
        raise StepError(
            f"{OF}: the data has no attention_rollout. Name images in chosen of describe_attention."
        )
    require(attention, "image", "layer", "query_token", "key_token", of=OF)
    tokens = tokens_of(attention, "Describe attention anew.", OF)
    kept = attention["image"].values.tolist()
    ids = kept if params.image is None else image_ids(attention, params.image, OF)
    pixels = {name: pixels_of(images, name, OF) for name in ids}
    maps = of_query(attention["attention_rollout"].sel(image=ids), tokens, params.query, OF)
    maps = maps.transpose("image", "layer", "token").load()
    look = Look(_title, "Attention rollout to the patch (all tokens sum to 1)", params.query)
    drawing = draw_maps(maps.expand_dims("row", 1), pixels, look, params.inches, OF)
    of = f"image {ids[0]}" if len(ids) == 1 else f"the images {', '.join(ids)} (from the top)"
    caption = (
        f"Attention rollout of {query_name(params.query)} to every patch of {of}: attention of all layers up "
        "to each one, heads averaged and the residual connection counted as half, multiplied. In numbers: to "
        "tokens that are no patches." + ("" if params.query == "cls" else " Orange: the query.")
    )
    return Plot(drawing, frame(maps.to_dataset()), caption)


def _title(cells: xr.DataArray) -> str:
    return f"Layer {int(cells['layer'])}"

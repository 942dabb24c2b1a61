"""Where one token looks in an image: the attention pattern of every head, over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.one_image import image_ids, pixels_of
from prisma_steps.figures.style import FigureParams, Plot, figure, require, select
from prisma_steps.figures.token_maps import Look, Query, draw_maps, of_query, query_name, tokens_of
from prisma_steps.schema import Activations, Images
from prisma_steps.step import Field

if TYPE_CHECKING:
    import xarray as xr

OF = "attention_maps"


class Params(FigureParams):
    """Settings of the attention maps."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    image: int | str | list[int | str] = Field(
        0, description="the image, by its place among the activations or by its id; or a list of images"
    )
    query: Literal["cls"] | Annotated[list[int], Field(min_length=2, max_length=3)] = Field(
        "cls",
        description="the token that attends: cls, or [row, column] of a patch; [frame, row, column] of clips",
    )
    layers: list[int] | None = Field(None, min_length=1, description="layers to draw; all when null")
    heads: list[int] | None = Field(None, min_length=1, description="heads to draw; all when null")


@figure(inputs={"activations": Activations, "images": Images})
def attention_maps(activations: xr.Dataset, images: xr.Dataset, params: Params) -> Plot:
    """Draw the attention of one token to all patches, for every layer and head, over the image.

    Of clips every head has a row of maps, one for each frame (the first of a tubelet). All maps have one
    colour scale. Attention to CLS has no place in the image and is written beside each map.

    Raises:
        StepError: when the pattern was not extracted, when the image, the patch, a layer or a head is not
            there, and when the maps do not fit on a page.
    """
    require(activations, "pattern", "layer", "head", "query_token", "key_token", of=OF)
    otherwise = "Extract the pattern with tokens: all, which says where every token lies."
    tokens = tokens_of(activations, otherwise, OF)
    ids = image_ids(activations, params.image, OF)
    pixels = {name: pixels_of(images, name, OF) for name in ids}
    asked = {"image": ids, "layer": params.layers, "head": params.heads}
    pattern = select(activations[["pattern"]], asked, of=OF)["pattern"]
    maps = of_query(pattern, tokens, params.query, OF)
    maps = maps.transpose("image", "layer", "head", "token").load()
    look = Look(_title, "Attention to the patch (all tokens sum to 1)", params.query)
    drawing = draw_maps(maps, pixels, look, params.inches, OF)
    return Plot(drawing, frame(maps.to_dataset()), _caption(ids, params.query))


def _title(cells: xr.DataArray) -> str:
    return f"L{int(cells['layer'])} H{int(cells['head'])}"


def _caption(ids: list[str], query: Query) -> str:
    of = f"image {ids[0]}" if len(ids) == 1 else f"the images {', '.join(ids)} (from the top)"
    return (
        f"Attention of {query_name(query)} to every patch of {of}, by layer (L) and head (H), with attention "
        "to tokens that are no patches in numbers." + ("" if query == "cls" else " Orange: the query.")
    )

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prisma_steps.claims
from prisma_steps.claims.grammar import NotAnExpression, parse
from prisma_steps.claims.tree import (
    Binary,
    Correlation,
    Expression,
    Number,
    Reduce,
    Select,
    Text,
    Unary,
    Variable,
    nodes_of,
    parts,
)

A, B = Variable("a", "x", "a.x"), Variable("b", "y", "b.y")


def bare(expression: Any) -> Any:
    """An expression without the pieces of text that its parts were read from."""
    if not is_dataclass(expression):
        return expression
    inner = [bare(getattr(expression, each.name)) for each in fields(expression) if each.name != "text"]
    return type(expression).__name__, *inner


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.x", A),
        ("(a.x)", A),
        ("+a.x", A),
        ("a\n .x", A),
        ("-3", Number(-3, "")),
        ("1e-3", Number(0.001, "")),
        ("a.x.mean()", Reduce(A, "mean", None, "")),
        ("a.x.mean('seed')", Reduce(A, "mean", ("seed",), "")),
        ("a.x.mean(dim='seed')", Reduce(A, "mean", ("seed",), "")),
        ("a.x.std(['seed', 'layer'])", Reduce(A, "std", ("seed", "layer"), "")),
        ("a.x.idxmax('layer')", Reduce(A, "idxmax", ("layer",), "")),
        (
            "a.x.sel(n=2, f=-0.5, t='cls', b=True, l=[1, 2])",
            Select(A, {"n": 2, "f": -0.5, "t": "cls", "b": True, "l": [1, 2]}, False, ""),
        ),
        ("a.x.isel(layer=-1)", Select(A, {"layer": -1}, True, "")),
        ("(a.x - b.y).max()", Reduce(Binary("-", A, B, ""), "max", None, "")),
        ("a.x - b.y * 2", Binary("-", A, Binary("*", B, Number(2, ""), ""), "")),
        ("-a.x ** 2", Unary("-", Binary("**", A, Number(2, ""), ""), "")),
        ("abs(a.x)", Unary("abs", A, "")),
        ("corr(a.x, b.y)", Correlation(A, B, None, "")),
        ("corr(a.x, b.y, 'layer')", Correlation(A, B, ("layer",), "")),
        ("a.x == 'dead'", Binary("==", A, Text("dead", ""), "")),
        ("a.x > 1", Binary(">", A, Number(1, ""), "")),
        ("not a.x > 1", Unary("~", Binary(">", A, Number(1, ""), ""), "")),
        ("~(a.x > 1)", Unary("~", Binary(">", A, Number(1, ""), ""), "")),
        ("(a.x > 1) | (b.y <= 2)", parse("a.x > 1 or b.y <= 2")),
        ("a.x < b.y < 3", parse("(a.x < b.y) & (b.y < 3)")),
        ("a.x > 1 and b.y > 1 and b.y != 2", parse("((a.x > 1) & (b.y > 1)) & (b.y != 2)")),
    ],
)
def test_what_can_be_written(text: str, expected: Expression) -> None:
    assert bare(parse(text)) == bare(expected)


HOSTILE = """
a.x.__class__
a.__class__
a.x.__class__.__mro__
a.__init__.__globals__
a._x
_a.x
a.x.mean.__func__
a.x.values
a.x.data
a.x.to_netcdf("f")
a.x.to_netcdf
a.x.pipe("f")
a.x.map_blocks(a.x)
a.x.mean("seed").__class__
().__class__.__bases__[0].__subclasses__()
"".__class__
"{0.__class__}".format(a.x)
__import__("os").system("touch ran")
__import__
open("f").read()
eval("1")
exec("1")
compile("1", "", "eval")
getattr(a, "x")
getattr(a.x, "__class__")
globals()["a"]
print(a.x)
a.x("mean")
a.x()
a("x")
abs.__self__
corr.__globals__
(abs)(a.x)(a.x)
lambda: a.x
(lambda: a.x)()
[a.x for a in b]
{a.x for a in b}
{a: a for a in b}
(a.x for a in b)
(y := a.x)
f"{a.x}"
f"{a.x!r:{b.y}}"
a.x[0]
a.x[0:3]
a["x"]
[a.x]
{"a": a.x}
(a.x, b.y)
*a.x
a.x if b.y else 1
await a.x
yield a.x
a.x @ b.y
a.x % 2
a.x // 2
a.x << 9
a.x ^ b.y
a.x in b.y
a.x is b.y
a.x ** b.y
a.x ** 1000
9 ** 9 ** 9
2 ** -11
"a" * 1000
"a" + "b"
a.x + "b"
"a" == "a"
1j
b"x"
...
None
True
1e999
a.x.mean(b.y)
a.x.mean("s" + "eed")
a.x.mean(f"seed")
a.x.mean(3)
a.x.mean([])
a.x.mean(*b)
a.x.mean(**b)
a.x.mean("a", "b")
a.x.mean("seed", skipna=False)
a.x.mean(axis=0)
a.x.idxmax()
a.x.idxmax(["a", "b"])
a.x.sel()
a.x.sel("a")
a.x.sel({"a": 1})
a.x.sel(**b)
a.x.sel(a=b.y)
a.x.sel(a=[[1]])
a.x.sel(a=[])
a.x.sel(a=None)
a.x.sel(a=(lambda: 1))
a.x.sel(a=slice(1, 2))
a.x.isel(a=1.5)
a.x.isel(a=True)
a.x.isel(a="b")
a.mean("seed")
a.x.mean
abs(a.x, b.y)
abs(x=a.x)
abs("a")
corr(a.x)
corr(a.x, 2)
corr(a.x, b.y, b.y)
corr(a.x, b.y, method="spearman")
3.mean()
(3).mean()
"a".mean()
not 3
~3
-"a"
1 & (a.x > 1)
a.x > 1 & b.y > 2
a.x = 3
a.x; b.y
import os
a
a.x b.y
(a.x
""".strip().splitlines()


@pytest.mark.parametrize("text", HOSTILE)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(NotAnExpression) as raised:
        parse(text)
    for mistake in raised.value.mistakes:
        assert mistake.at and mistake.what


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "(" * 500 + "a.x" + ")" * 500,
        "-" * 1900 + "a.x",
        "~" * 1900 + "a.x",
        "not " * 400 + "a.x",
        "a.x" + ".mean()" * 250,
        "a.x" + " + a.x" * 300,
        "a.x" + " and a.x" * 220,
        "a.x" + " < a.x" * 300,
        "[" * 150 + "]" * 150,
        "a.x.sel(a=" + "[" * 150 + "]" * 150 + ")",
        "a.x.mean(" + "-" * 1800 + "1)",
        "9" * 1999,
        "a.x" * 10_000,
        "a.x\0",
        "'\\d' == a.x",
        "1if 2else 3",
        "\ud800",
    ],
)
def test_what_would_exhaust_or_confuse_a_parser_is_refused(text: str) -> None:
    with pytest.raises(NotAnExpression):
        parse(text)


def test_all_mistakes_are_told_with_their_pieces_and_what_to_do() -> None:
    with pytest.raises(NotAnExpression) as raised:
        parse("a.x.men('seed') + b.__y + vit.max() + ab(c.z) + d.é")
    told = [(mistake.at, mistake.what, mistake.hint) for mistake in raised.value.mistakes]
    assert told == [
        ("a.x.men('seed')", ".men(…) is nothing that a value has", "did you mean 'mean'?"),
        ("b.__y", "'__y' is no name of a node or a variable", ""),
        ("vit.max()", "is max of a node, expected that of a variable", "write vit.<variable>.max(…)"),
        ("ab(c.z)", "there is no function 'ab'", "did you mean 'abs'?"),
        ("d.é", "'é' is no name of a node or a variable", ""),
    ]


WORDS = "a b vit x mean sel isel max corr abs lambda for in if else not and or is await None __class__ _x é"
SIGNS = r"""... () () [ ] { } , : = == < > + - * / ** & | ~ @ % ^ := 1 2.5 1e999 "seed" f"{a}" b"x" \ # ;"""
TOKENS = [*WORDS.split(), *SIGNS.split(), *".().", "\n"]


@given(st.lists(st.sampled_from(TOKENS), max_size=30).map(" ".join) | st.text(max_size=60))
def test_any_text_is_an_expression_of_known_parts_or_refused(text: str) -> None:
    try:
        expression = parse(text)
    except NotAnExpression as error:
        assert error.mistakes
        return
    for part in parts(expression):
        assert isinstance(part, get_args(Expression))
        if isinstance(part, Variable):
            assert part.node[0].isalpha() and part.name[0].isalpha()


def test_nodes_are_named_once_in_order() -> None:
    assert nodes_of(parse("corr(b.x, a.y) + abs(b.z - 1).sel(c=1).max()")) == ("b", "a")


def test_no_module_of_it_can_run_what_a_text_says() -> None:
    """The whole package names no function that runs code or looks a name up."""
    forbidden = {
        "eval",
        "exec",
        "compile",
        "getattr",
        "setattr",
        "vars",
        "globals",
        "__import__",
        "importlib",
    }
    for file in Path(prisma_steps.claims.__file__).parent.glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert not names & forbidden, file.name

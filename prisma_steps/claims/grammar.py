"""From the text of an expression to its tree.

Python's own parser makes a syntax tree, and a walk over it keeps what is listed here and refuses the rest.
Nothing is ever compiled, evaluated or looked up by a name that the text gives.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from prisma_steps.claims.arguments import Refused, choices, dims
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
)
from prisma_steps.problems import close, nearest

#: Reductions, named as in xarray. Those of the second line need one dim.
REDUCTIONS = ("mean", "max", "min", "median", "std", "sum", "count", "any", "all")
POSITIONS = ("argmax", "argmin", "idxmax", "idxmin")
METHODS = ("sel", "isel", *REDUCTIONS, *POSITIONS)
FUNCTIONS = ("abs", "corr")

#: Far above any claim, far below what exhausts Python's parser or the stack.
_LONGEST = 2000
_DEEPEST = 40
_HIGHEST_POWER = 10

_BINARY = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.And: "&",
    ast.Or: "|",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_SIGNS = tuple(dict.fromkeys(_BINARY.values()))
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
_FORM = "write node.variable, .sel(…), .isel(…), a reduction, arithmetic or a comparison"


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with an expression.

    Attributes:
        at: the piece of the expression where it is.
        what: what is wrong and what was expected.
        hint: what to do, or the nearest valid name.
    """

    at: str
    what: str
    hint: str = ""


class NotAnExpression(ValueError):
    """A text that is no expression; ``mistakes`` are all those found in it."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        """Keep the mistakes in the order of the text."""
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(f"{mistake.at}: {mistake.what}" for mistake in mistakes))


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        NotAnExpression: with every mistake found.
    """
    line = " ".join(text.split())
    if not line:
        raise NotAnExpression([Mistake("''", "is empty, expected an expression", _FORM)])
    if len(line) > _LONGEST:
        what = f"is {len(line):,} characters long, expected {_LONGEST:,} at most"
        raise NotAnExpression([Mistake(line[:20] + "…", what)])
    reader = _Reader(line)
    expression = reader.value(_syntax(line))
    if expression is None or reader.mistakes:
        raise NotAnExpression(reader.mistakes)
    return expression


def _syntax(line: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # dubious spelling is a mistake too
            return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        at = line[max(0, (error.offset or 1) - 1) :][:20] or line[-20:]
        hint = "compare with ==" if re.search(r"[^=<>!]=[^=]", line) and "(" not in line else ""
        raise NotAnExpression([Mistake(at, f"is not an expression: {error.msg}", hint)]) from None
    except (ValueError, RecursionError, MemoryError):
        raise NotAnExpression([Mistake(line[:20], "is not an expression that can be read")]) from None


class _Reader:
    """Turns a syntax tree into an expression. What it cannot is noted, and None stands for it."""

    def __init__(self, line: str) -> None:
        self.mistakes: list[Mistake] = []
        self._line = line

    def value(self, node: ast.expr, depth: int = 0) -> Expression | None:
        try:
            if depth > _DEEPEST:
                raise Refused(f"is nested more than {_DEEPEST} levels deep")
            return self._read(node, depth + 1)
        except Refused as refused:
            self.mistakes.append(Mistake(self._text(node), refused.what, refused.hint))
            return None

    def _text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self._line, node) or self._line

    def _read(self, node: ast.expr, depth: int) -> Expression | None:
        text = self._text(node)
        match node:
            case ast.Constant():
                return _constant(node.value, text)
            case ast.Attribute():
                return _variable(node, text)
            case ast.Call():
                return self._call(node, depth)
            case ast.UnaryOp():
                return _unary(node.op, self.value(node.operand, depth), text)
            case ast.BinOp():
                sides = self.value(node.left, depth), self.value(node.right, depth)
                return _binary(node.op, *sides, text)
            case ast.BoolOp():
                return _joined(node.op, [self.value(value, depth) for value in node.values], text)
            case ast.Compare():
                values = [self.value(value, depth) for value in (node.left, *node.comparators)]
                return _comparison(node.ops, values, text)
            case ast.Name() if _NAME.fullmatch(node.id):
                raise Refused("is a name alone, expected a variable of a node", f"write {node.id}.<variable>")
        raise Refused(f"is {_said(node)}, which has no place in a claim", _FORM)

    def _call(self, node: ast.Call, depth: int) -> Expression | None:
        match node.func:
            case ast.Name(id="abs"):
                return self._abs(node, depth)
            case ast.Name(id="corr"):
                return self._correlation(node, depth)
            case ast.Name(id=name):
                raise Refused(f"there is no function {name!r}", nearest(name, FUNCTIONS))
            case ast.Attribute(value=ast.Name(id=name), attr=method) if method in METHODS:
                hint = f"write {name}.<variable>.{method}(…)"
                raise Refused(f"is {method} of a node, expected that of a variable", hint)
            case ast.Attribute(attr=method) if method in METHODS:
                return self._method(node, node.func, depth)
            case ast.Attribute(attr=method):
                raise Refused(f".{method}(…) is nothing that a value has", nearest(method, METHODS))
        raise Refused(f"calls {_said(node.func)}", f"call one of: {', '.join((*METHODS, *FUNCTIONS))}")

    def _method(self, node: ast.Call, method: ast.Attribute, depth: int) -> Expression | None:
        of, name, text = self.value(method.value, depth), method.attr, self._text(node)
        if isinstance(of, Number | Text):
            raise Refused(f"is {name} of what is written out, expected that of a variable")
        if name in ("sel", "isel"):
            chosen = choices(node, by_position=name == "isel")
            return None if of is None else Select(of, chosen, name == "isel", text)
        over = dims(node.args, node.keywords)
        if name in POSITIONS and (over is None or len(over) != 1):
            raise Refused(f"{name} needs one dim", f'write .{name}("layer")')
        return None if of is None else Reduce(of, name, over, text)

    def _abs(self, node: ast.Call, depth: int) -> Expression | None:
        if len(node.args) != 1 or node.keywords:
            raise Refused("abs takes one value")
        of = self.value(node.args[0], depth)
        if isinstance(of, Text):
            raise Refused("is of a text, expected a number or a variable")
        return None if of is None else Unary("abs", of, self._text(node))

    def _correlation(self, node: ast.Call, depth: int) -> Expression | None:
        if len(node.args) < 2:
            raise Refused("corr takes two values and, if you like, dims", 'corr(a.x, b.y, "layer")')
        left, right = (self.value(value, depth) for value in node.args[:2])
        over = dims(node.args[2:], node.keywords)
        if any(isinstance(side, Number | Text) for side in (left, right)):
            raise Refused("corr is of two variables, one side is written out")
        return None if left is None or right is None else Correlation(left, right, over, self._text(node))


def _constant(value: object, text: str) -> Expression:
    if isinstance(value, str):
        return Text(value, text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("expected a number or a variable of a node")
    if abs(value) > sys.float_info.max:
        raise Refused("is too large for a number")
    return Number(float(value), text)


def _variable(node: ast.Attribute, text: str) -> Expression:
    if not isinstance(node.value, ast.Name):
        if node.attr in METHODS:
            raise Refused(f"{node.attr} is not called", f"write .{node.attr}(…)")
        hint = close(node.attr, METHODS) or f"call one of: {', '.join(METHODS)}"
        raise Refused(f".{node.attr} is nothing that a value has", hint)
    for name in (node.value.id, node.attr):
        if not _NAME.fullmatch(name):
            raise Refused(f"{name!r} is no name of a node or a variable")
    return Variable(node.value.id, node.attr, text)


def _unary(operator: ast.unaryop, of: Expression | None, text: str) -> Expression | None:
    if isinstance(of, Text):
        raise Refused("is of a text, expected a number or a variable")
    if of is None or isinstance(operator, ast.UAdd):
        return of
    if isinstance(operator, ast.USub):
        return Number(-of.value, text) if isinstance(of, Number) else Unary("-", of, text)
    if isinstance(of, Number):
        raise Refused("is of a number, expected a comparison")
    return Unary("~", of, text)


def _binary(
    operator: ast.AST, left: Expression | None, right: Expression | None, text: str
) -> Expression | None:
    """Two values with an operator between them, which must be one for such values."""
    sign = _BINARY.get(type(operator))
    if sign is None:
        raise Refused(
            f"has the operator {_said(operator).partition(' ')[2]}", f"expected one of: {' '.join(_SIGNS)}"
        )
    if left is None or right is None:
        return None
    texts = [isinstance(side, Text) for side in (left, right)]
    if any(texts) and (sign not in ("==", "!=") or all(texts)):
        raise Refused("has a text, which can only be compared with a variable, by == or !=")
    if sign in "&|" and any(isinstance(side, Number) for side in (left, right)):
        hint = "put each comparison in parentheses: (a > 1) & (b > 2)"
        raise Refused(f"{sign} joins comparisons, one side is a number", hint)
    if sign == "**" and not (isinstance(right, Number) and abs(right.value) <= _HIGHEST_POWER):
        raise Refused(f"expected a power from -{_HIGHEST_POWER} to {_HIGHEST_POWER}, written as a number")
    return Binary(sign, left, right, text)


def _joined(operator: ast.boolop, values: Sequence[Expression | None], text: str) -> Expression | None:
    """``a and b and c``, from the left."""
    if len(values) > _DEEPEST:
        raise Refused(f"joins {len(values)} values, expected {_DEEPEST} at most")
    whole = values[0]
    for other in values[1:]:
        whole = _binary(operator, whole, other, text)
    return whole


def _comparison(
    operators: Sequence[ast.cmpop], values: Sequence[Expression | None], text: str
) -> Expression | None:
    """``a < b < c`` is ``(a < b) & (b < c)``."""
    triples = zip(operators, values[:-1], values[1:], strict=True)
    return _joined(ast.And(), [_binary(sign, left, right, text) for sign, left, right in triples], text)


def _said(node: ast.AST) -> str:
    """What a piece of Python is called, as ``a list comp``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).strip().lower()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

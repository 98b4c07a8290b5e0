"""Calls of the package in Python that is shown to readers, held to the signatures they name."""

import ast
import functools
import inspect

import pyro_vae as pv


def calls_of(code):
    """Every ``pv.a.b(...)`` in it, as the names and the call."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            names, made = [], node.func
            while isinstance(made, ast.Attribute):
                names.insert(0, made.attr)
                made = made.value
            if names and isinstance(made, ast.Name) and made.id == "pv":
                yield names, node


def bind(code):
    """Bind the arguments of each to the signature of what it names; how many there were."""
    number = 0
    for names, call in calls_of(code):
        found = functools.reduce(getattr, names, pv)
        given = {keyword.arg: None for keyword in call.keywords}
        number += 1
        if None not in given and not any(isinstance(a, ast.Starred) for a in call.args):
            inspect.signature(found).bind(*call.args, **given)
    return number

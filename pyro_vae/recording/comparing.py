"""Where two records differ, and how one is shown."""

from __future__ import annotations

from pyro_vae.recording.forms import KIND, Form, is_comparable, same


def differences(
    mine: Form, theirs: Form, name: str = "", *, between: str = " and ", values: bool = True
) -> list[str]:
    """Where two records, or any two forms, differ: one line an argument, by its name.

    Args:
        mine, theirs: what to compare.
        name: of the whole, which stands before the names of arguments.
        between: what stands between two values.
        values: whether the values of modules count, beside how they were made.

    Returns:
        No line where the two are alike; something that cannot be compared never is.
    """
    kinds = [form.get(KIND) if isinstance(form, dict) else type(form) for form in (mine, theirs)]
    alike = kinds[0] == kinds[1]
    if alike and kinds[0] == "incomparable":
        return [f"{name or 'it'} is {shown(mine)}, which cannot be compared: {mine['why']}"]
    if alike and kinds[0] == "function" and mine.get("source", "") == theirs.get("source") != "":
        return []  # by whatever Python
    if alike and kinds[0] == "function" and "" in (mine.get("source"), theirs.get("source")):
        mine, theirs = ({**form, "source": ""} for form in (mine, theirs))  # one's was not there
    if not values and alike and kinds[0] in ("made", "module"):
        mine, theirs = ({**form, "sha256": ""} for form in (mine, theirs))
    inner = []
    if alike and kinds[0] == "made" and mine["class"] == theirs["class"]:
        inner = [mine["arguments"], theirs["arguments"]]
    elif alike and kinds[0] is None:
        inner = [mine, theirs]
    elif alike and kinds[0] in (list, tuple) and len(mine) == len(theirs):
        inner = [{f"[{i}]": value for i, value in enumerate(form)} for form in (mine, theirs)]
    lines = []
    for each in {**inner[0], **inner[1]} if inner else ():
        path = f"{name}{'' if each[:1] == '[' or not name else '.'}{each}"
        if each in inner[0] and each in inner[1]:
            lines += differences(
                inner[0][each], inner[1][each], path, between=between, values=values
            )
        else:
            said = [shown(form[each]) if each in form else "not given" for form in inner]
            lines.append(f"{path} is {between.join(said)}")
    made_alike = inner and (kinds[0] != "made" or mine.get("sha256") == theirs.get("sha256"))
    if lines or made_alike:
        return lines
    if same(mine, theirs):
        return [] if is_comparable(mine) else [f"{name or 'it'} holds what cannot be compared"]
    said = [shown(form) for form in (mine, theirs)]
    if said[0] == said[1]:
        said = [shown(form, full=True) for form in (mine, theirs)]
    return [f"{name or 'it'} is {between.join(said)}"]


def shown(form: Form, always: str = "", *, full: bool = False) -> str:
    """A form as one would type it, where that can be, without what has its default.

    Args:
        form: of a value.
        always: an argument that is told by default too, where it is not 1.
        full: classes by qualified name, and digests whole.
    """
    if isinstance(form, (list, tuple)):
        inner = ", ".join(shown(each) for each in form)
        if isinstance(form, list):
            return f"[{inner}]"
        return f"({inner},)" if len(form) == 1 else f"({inner})"
    if not isinstance(form, dict):
        return repr(form)
    kind = form.get(KIND)
    if kind is None:
        return f"{{{', '.join(f'{n!r}: {shown(part)}' for n, part in form.items())}}}"
    if kind == "above":
        return "..."
    if "items" in form:
        return f"{kind}({shown(form['items'])})"
    name = form.get("class") or form.get("name") or kind
    if not full and kind not in ("name", "class"):
        name = name.rpartition(".")[2]
    digest = form.get("sha256", "")[: None if full else 8]
    if kind == "made":
        options = [
            f"{name}={shown(value)}"
            for name, value in form["arguments"].items()
            if name not in form["defaults"] or (name == always and value != 1)
        ]
        return f"{name}({', '.join(options)})" + (f"<{digest}>" if full and digest else "")
    if kind in ("name", "class"):
        return name
    marks = [str(form[mark]) for mark in ("dtype", "shape") if mark in form] + [digest]
    if full:
        marks += [str(form[mark]) for mark in ("structure", "python") if mark in form]
    return f"<{' '.join(mark for mark in [name, *marks] if mark)}>"

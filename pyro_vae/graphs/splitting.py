"""A graph in two: what depends on fixed arguments alone, and the rest, which is run often."""

from __future__ import annotations

from torch import fx


def split(graph: fx.GraphModule, num_fixed: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """``graph(*fixed, *rest)`` is ``tail(*head(*fixed), *rest)``.

    Chains move latents many times at the same rows: an encoder, say, need run once.

    Args:
        graph: of pure operations.
        num_fixed: how many of its first arguments are fixed.
    """
    nodes = list(graph.graph.nodes)
    arguments = [node for node in nodes if node.op == "placeholder"]
    known = set(arguments[:num_fixed])
    for node in nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and all(each in known for each in node.all_input_nodes)
        ):
            known.add(node)
    passed = [n for n in nodes if n in known and any(user not in known for user in n.users)]

    head, at = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes:
        if node in known:
            at[node] = head.node_copy(node, at.__getitem__)
    head.output(tuple(at[node] for node in passed))

    tail, at = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate(passed):
        at[node] = tail.placeholder(f"known_{number}")
    for node in nodes:
        if node not in known:
            at[node] = tail.node_copy(node, at.__getitem__)
    return fx.GraphModule(graph, head), fx.GraphModule(graph, tail)

"""A ComfyUI workflow as data, and its two file formats.

The API format is the value of `prompt` in the body of `POST /prompt`: {id: {class_type, inputs,
_meta}}, an input being a value or [id, slot]. The UI format is what the page opens and saves: nodes
with sockets, links and `widgets_values` (https://docs.comfy.org/specs/workflow_json_0.4, version
0.4). Nodes of the page alone, notes, are in the UI format only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stages.exporting.sockets import CONTROLLED, NOTE, SOCKETS

_VERSION: Final = 0.4
_FIXED: Final = "fixed"
"""What a seed's `control after generate` is set to: the same picture every time."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """An output of a node: where an input comes from."""

    node: int
    slot: int


@dataclass(frozen=True)
class Node:
    """A node: its number, class, title, inputs by name, and box (left, top, width, height).

    A value that is no Output is a widget's.
    """

    number: int
    kind: str
    title: str
    inputs: Mapping[str, Output | str | float]
    box: tuple[int, int, int, int]


def api_format(nodes: Sequence[Node]) -> Json:
    """Return the workflow as a server runs it."""
    return {
        str(node.number): {
            "class_type": node.kind,
            "inputs": {
                name: [str(value.node), value.slot] if isinstance(value, Output) else value
                for name, value in node.inputs.items()
            },
            "_meta": {"title": node.title},
        }
        for node in nodes
        if node.kind != NOTE
    }


def ui_format(nodes: Sequence[Node]) -> Json:
    """Return the workflow as the page opens it; links are numbered in the order of their ends."""
    links: list[list[int | str]] = []
    for node in nodes:
        for place, (name, type_name) in enumerate(SOCKETS[node.kind].inputs):
            source = node.inputs[name]
            if not isinstance(source, Output):
                raise TypeError(f"{node.kind}.{name} takes a link, not {source!r}")
            number = len(links) + 1
            links.append([number, source.node, source.slot, node.number, place, type_name])
    return {
        "last_node_id": max(node.number for node in nodes),
        "last_link_id": len(links),
        "nodes": [_ui_node(node, order, links) for order, node in enumerate(nodes)],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": _VERSION,
    }


def _ui_node(node: Node, order: int, links: Sequence[Sequence[int | str]]) -> Json:
    sockets = SOCKETS[node.kind]
    into = {link[4]: link[0] for link in links if link[3] == node.number}
    return {
        "id": node.number,
        "type": node.kind,
        "title": node.title,
        "pos": list(node.box[:2]),
        "size": list(node.box[2:]),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [
            {"name": name, "type": type_name, "link": into[place]}
            for place, (name, type_name) in enumerate(sockets.inputs)
        ],
        "outputs": [
            {
                "name": name,
                "type": type_name,
                "slot_index": slot,
                "links": [link[0] for link in links if link[1:3] == [node.number, slot]],
            }
            for slot, (name, type_name) in enumerate(sockets.outputs)
        ],
        "properties": {"Node name for S&R": node.kind} if node.kind != NOTE else {},
        "widgets_values": _widgets(node),
    }


def _widgets(node: Node) -> list[Any]:
    """Return the values of the widgets in order; a seed has its control's beside it."""
    values: list[Any] = []
    for name in SOCKETS[node.kind].widgets:
        values.append(node.inputs[name])
        if (node.kind, name) in CONTROLLED:
            values.append(_FIXED)
    return values

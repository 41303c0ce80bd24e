"""The search for certainly Byzantine workers, from who disagrees with whom.

Source: the agreement graph and clique detection of Konstantinidis & Ramamoorthy, Aspis (arXiv:2108.02416). Honest
workers agree wherever they compute the same. So at least n - s of the n workers agree mutually: they are a clique of
the agreement graph. A worker outside all such cliques is Byzantine. The search here is for the complements of cliques:
covers, sets of at most s rows that hold one row of every disagreeing pair.

Deviation: where there is one largest clique, Aspis drops everybody else. Byzantine workers who disagree with fewer than
s others can make it a clique of themselves without some honest worker. Here a worker is dropped only if no set of s
Byzantine workers would explain the disagreements without it.
"""

from collections.abc import Iterable, Mapping

Graph = Mapping[int, set[int]]  # row -> the rows that disagree with it


def certainly_byzantine(disagreements: Iterable[tuple[int, int]], s: int) -> tuple[int, ...] | None:
    """Return the rows that are in every set of at most s rows that covers all pairs; None: no set does."""
    graph: dict[int, set[int]] = {}
    for a, b in disagreements:
        graph.setdefault(a, set()).add(b)
        graph.setdefault(b, set()).add(a)
    if not _covered(graph, s):
        return None
    # A row can be honest if some cover does without it. That cover then holds all rows that disagree with it, and has
    # s - (their number) rows left for the pairs that remain.
    return tuple(row for row in sorted(graph) if not _covered(_without(graph, {row, *graph[row]}), s - len(graph[row])))


def _without(graph: Graph, rows: set[int]) -> Graph:
    return {row: near - rows for row, near in graph.items() if row not in rows}


def _covered(graph: Graph, budget: int) -> bool:
    """Say whether at most `budget` rows cover every edge: a bounded search tree on the row of the highest degree."""
    if budget < 0:
        return False
    degree, row = max(((len(near), row) for row, near in graph.items()), default=(0, -1))
    if degree == 0:
        return True
    # Every edge is counted at both of its rows. `budget` rows of the highest degree cover degree * budget edges.
    if sum(map(len, graph.values())) > 2 * degree * budget:
        return False
    if degree <= 2:
        return _of_paths(graph) <= budget
    # A cover holds the row, or else all of its neighbours.
    if _covered(_without(graph, {row}), budget - 1):
        return True
    return _covered(_without(graph, {row, *graph[row]}), budget - degree)


def _of_paths(graph: Graph) -> int:
    """Return the size of the least cover of a graph of paths and circles: half of the edges of each, rounded up."""
    total, seen = 0, set[int]()
    for start in graph:
        # Walk through the path or circle of `start`; `ends` counts every edge at both of its rows.
        reached, ends = [start], 0
        while reached:
            row = reached.pop()
            if row not in seen:
                seen.add(row)
                ends += len(graph[row])
                reached.extend(graph[row])
        total += (ends // 2 + 1) // 2
    return total

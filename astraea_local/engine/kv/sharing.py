"""Which jobs' states begin alike."""

from astraea_local.engine.kv.parts import PartTree, path


def shared_tokens(tree: PartTree) -> dict[str, int]:
    """For each job that has a parked state: how many of its tokens begin another job's state as well."""
    reached: dict[str, list[int]] = {}
    """Where the two longest states that go through a part leave it."""
    paths = {job: path(part, length) for job, part, length in tree.jobs()}
    for pieces in paths.values():
        for piece in pieces:
            ends = reached.setdefault(piece.part.id, [])
            ends.append(piece.end)
            ends.sort(reverse=True)
            del ends[2:]
    found = {}
    for job, pieces in paths.items():
        found[job] = 0
        for piece in pieces:
            ends = reached[piece.part.id]
            if len(ends) > 1:
                # The second of them is another's, or as long as another's.
                found[job] = min(piece.end, ends[1])
    return found

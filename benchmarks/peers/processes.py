"""A peer's parties, each a process, that run once for every line on standard input.

Runs under the peer's own Python, from 3.10 on; needs nothing but the standard library.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time


def serve(party_class, arguments, combine):
    """Starts a process a party; prints one JSON line when all are ready, and one for each run.

    Ends at a line other than `run`, or with a JSON line that has `error` when a party fails.

    Args:
      party_class: `party_class(rank, *arguments[rank])` is a party, with methods `run()`, which is
        timed, and `results()` -> (bytes sent, rounds, its share of the logits).
      arguments: a tuple a party; the list is emptied, for the shares of a large network are large.
      combine: makes a list of numbers, the logits, of all parties' shares.
    """
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(len(arguments))
    pipes, parties = [], []
    for rank in range(len(arguments)):
        ours, theirs = spawn.Pipe()
        party = spawn.Process(target=_live, args=(party_class, rank, theirs, barrier), daemon=True)
        party.start()
        theirs.close()  # so that a party's death ends what is read from its pipe
        pipes.append(ours)
        parties.append(party)
    for pipe in pipes:
        pipe.send(arguments.pop(0))
    _gather(pipes, parties)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        go_on = line.strip() == "run"
        for pipe in pipes:
            pipe.send(go_on)
        if not go_on:
            break
        replies = _gather(pipes, parties)
        reply = {
            "seconds": max(each["seconds"] for each in replies),
            "cpu_seconds": sum(each["cpu_seconds"] for each in replies),
            "bytes": sum(each["bytes"] for each in replies),
            "rounds": max(each["rounds"] for each in replies),
            "logits": combine([each["share"] for each in replies]),
        }
        print(json.dumps(reply), flush=True)


def _gather(pipes, parties):
    """What each party sends next; ends the program if one fails or dies, whichever it is."""
    replies: dict[int, dict] = {}
    while len(replies) < len(pipes):
        silent = [pipe for rank, pipe in enumerate(pipes) if rank not in replies]
        for pipe in multiprocessing.connection.wait(silent):
            rank = pipes.index(pipe)
            try:
                replies[rank] = pipes[rank].recv()
            except EOFError:
                parties[rank].join(10)
                _fail(f"party {rank} died with exit code {parties[rank].exitcode}")
            if "error" in replies[rank]:
                _fail(f"party {rank}: {replies[rank]['error']}")
    return [replies[rank] for rank in range(len(pipes))]


def _fail(message):
    print(json.dumps({"error": message}), flush=True)
    sys.exit(1)


def _live(party_class, rank, pipe, barrier):
    try:
        party = party_class(rank, *pipe.recv())
        pipe.send({"ready": True})
        while pipe.recv():
            barrier.wait()
            wall, cpu = time.perf_counter(), time.process_time()
            party.run()
            reply = {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
            }
            n_bytes, rounds, share = party.results()
            pipe.send({**reply, "bytes": n_bytes, "rounds": rounds, "share": share})
    except (EOFError, BrokenPipeError):
        pass  # the program that started it ended
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
    os._exit(0)  # network libraries would wait for the other parties to be taken down too

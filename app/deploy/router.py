"""Request router of Ray Serve that prefers the replica with a warm prefix."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from app.deploy.affinity import by_preference, chosen


class AffinityRouter(RequestRouter):  # type: ignore[misc] # Ray's types are not checked
    """Sends requests with one key to one replica, and to the least loaded one if that replica has a queue.

    A request has its key as the keyword argument ``key``. Without FIFOMixin: it exchanges waiting requests.
    """

    def initialize_state(self, **arguments: Any) -> None:
        """``slack``: requests that a replica may have above the least loaded one."""
        self._slack = int(arguments.get("slack", 8))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return ranks of replicas, the preferred one first."""
        if not candidate_replicas:
            return []
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        key = "" if pending_request is None else str(pending_request.kwargs.get("key", ""))
        running = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for name, replica in replicas.items()
        }
        preferred = by_preference(key, list(replicas))
        first = chosen(preferred, running, self._slack)
        return [[replicas[first]], *([replicas[name]] for name in preferred if name != first)]

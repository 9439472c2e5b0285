"""The local stack: Elasticsearch, MLflow, the search service and Airflow as real servers, without a container engine."""

from listing_lens.stack.supervisor import Addresses, Event, ServerStatus, down, status, up

__all__ = ["Addresses", "Event", "ServerStatus", "down", "status", "up"]

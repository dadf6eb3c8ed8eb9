"""librdkafka's mock cluster, which lives in the process that made it: a Kafka for tests, without Kafka.

`Producer({"test.mock.num.brokers": 1})` would make one too, but not let a test say how many partitions a topic has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Producer

_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_set": (_INT, [_POINTER, _TEXT, _TEXT, _TEXT, ctypes.c_size_t]),
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_new": (_POINTER, [_POINTER, _INT]),
    "rd_kafka_mock_cluster_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, [_POINTER]),
    "rd_kafka_mock_topic_create": (_INT, [_POINTER, _TEXT, _INT, _INT]),
    "rd_kafka_mock_broker_set_down": (_INT, [_POINTER, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (_INT, [_POINTER, ctypes.c_int32]),
}


def _library() -> ctypes.CDLL:
    packages = Path(confluent_kafka.__file__).parents[1]
    (found,) = packages.glob("confluent_kafka.libs/librdkafka-*.so*")  # the one that the package itself has loaded
    library = ctypes.CDLL(str(found))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Kafka:
    """One broker. It keeps about the last 5 MB of a partition, as retention would."""

    def __init__(self) -> None:
        self._library = _library()
        configuration = self._library.rd_kafka_conf_new()
        error = ctypes.create_string_buffer(512)
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"0", error, 512)
        self._client = self._library.rd_kafka_new(0, configuration, error, 512)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        self.brokers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self.producer = Producer({"bootstrap.servers": self.brokers, "linger.ms": 1})

    def topic(self, name: str, partitions: int = 1) -> None:
        assert self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1) == 0

    def send(self, topic: str, partition: int, value: bytes | None) -> None:
        self.producer.produce(topic, value, partition=partition)
        self.producer.poll(0)

    def flush(self) -> None:
        assert self.producer.flush(30) == 0

    def stop(self) -> None:
        self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def start(self) -> None:
        self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def close(self) -> None:
        self.producer.flush(1)
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


@contextmanager
def kafka() -> Iterator[Kafka]:
    with closing(Kafka()) as cluster:
        yield cluster

"""What several processes counted, as one."""

from __future__ import annotations

from tidemill.serve.counts import merged
from tidemill.serve.metrics import Metrics


def counted(*, requests: int, seconds: float = 0.01) -> Metrics:
    made = Metrics()
    for _ in range(requests):
        made.requests.sample("/predict", "200").value += 1
        made.request_seconds.sample("/predict").observe(seconds)
    made.in_flight.sample().value = requests
    made.models.sample("m", "1", "abc", "binary").value = 1
    return made


def test_sums_and_gauges_of_two() -> None:
    one, other = counted(requests=3), counted(requests=4, seconds=2.0)
    one.started.sample().value, other.started.sample().value = 50.0, 40.0
    text = one.render_all(merged([("1", one.snapshot()), ("2", other.snapshot())])).decode()
    assert 'tidemill_requests_total{route="/predict",status="200"} 7\n' in text
    assert 'tidemill_request_duration_seconds_bucket{route="/predict",le="0.01"} 3\n' in text
    assert 'tidemill_request_duration_seconds_bucket{route="/predict",le="+Inf"} 7\n' in text
    assert 'tidemill_request_duration_seconds_count{route="/predict"} 7\n' in text
    assert "tidemill_requests_in_flight 7\n" in text
    assert 'tidemill_model_info{model="m",version="1",identity="abc",task="binary"} 1\n' in text
    assert "tidemill_start_time_seconds 40\n" in text
    assert 'tidemill_process_resident_memory_bytes{replica="1"} ' in text
    assert 'tidemill_process_resident_memory_bytes{replica="2"} ' in text


def test_of_one_that_ended_only_sums_stay() -> None:
    ended = merged([("1", counted(requests=3).snapshot())], only_sums=True)
    again = merged([("", ended), ("1", counted(requests=1).snapshot())], only_sums=True)
    text = Metrics().render_all(merged([("", again), ("2", counted(requests=2).snapshot())])).decode()
    assert 'tidemill_requests_total{route="/predict",status="200"} 6\n' in text
    assert "tidemill_requests_in_flight 2\n" in text
    assert 'replica="1"' not in text


def test_the_view_of_one_is_what_it_renders() -> None:
    one = counted(requests=3)
    together = one.render_all(merged([("1", one.snapshot())])).decode()
    ignored = ("process_", "replica")
    lines = [line for line in one.render().decode().splitlines() if not any(word in line for word in ignored)]
    assert [line for line in together.splitlines() if not any(word in line for word in ignored)] == lines


def test_what_is_long_gone_is_forgotten() -> None:
    made = Metrics()
    for version in ("1", "2"):
        made.rows.sample("m", version).value = 5
    made.forget("m", "1")
    text = made.render().decode()
    assert 'tidemill_rows_total{model="m",version="2"} 5' in text
    assert 'version="1"' not in text

-- wrk: posts the bodies of the file BODIES, one a line, in turn, to the path TARGET; prints one line of JSON at the end.
local requests, at = {}, 0

function init()
  local headers = { ["Content-Type"] = "application/json" }
  for line in io.lines(os.getenv("BODIES")) do
    requests[#requests + 1] = wrk.format("POST", os.getenv("TARGET"), headers, line)
  end
  at = math.floor(#requests * tonumber(os.getenv("OFFSET")))
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    'RESULT {"answers": %d, "seconds": %.4f, "mean_ms": %.4f, "p50_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "refused": %d, "failed": %d, "late": %d}\n',
    summary.requests, summary.duration / 1e6, latency.mean / 1e3, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    failed.status, failed.connect + failed.read + failed.write, failed.timeout))
end

# frozen_string_literal: true

module Demo
  # All that the monitor wants to know.
  MonitorConfig = Data.define(:max_connections, :heartbeat_interval, :orphan_threshold)

  # Far shorter times (in s) than an application would choose, so that a recovery takes seconds.
  MONITOR_CONFIG = MonitorConfig.new(max_connections: 100, heartbeat_interval: 1, orphan_threshold: 3)
  # How long a simulated request takes, in s.
  REQUEST_SECONDS = 1.0..4.0
end

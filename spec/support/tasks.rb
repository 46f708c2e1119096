# frozen_string_literal: true

require "securerandom"

# What the class is given: tasks, and a config.
module Tasks
  # As patient_http has them: only what the class asks for.
  Task = Struct.new(:id, :task_handler)
  TaskHandler = Struct.new(:sidekiq_job)
  Config = Struct.new(:max_connections, :heartbeat_interval, :orphan_threshold)

  # @param id [String]
  # @param job [Hash] what differs from an ordinary job
  def task(id = SecureRandom.hex(8), **job)
    job = {"class" => "ReportJob", "args" => ["a", 1], "jid" => SecureRandom.hex(12), "queue" => "default"}
      .merge(job.transform_keys(&:to_s))
    Task.new(id, TaskHandler.new(job))
  end

  def config(max_connections: 10, heartbeat_interval: 60, orphan_threshold: 300)
    Config.new(max_connections, heartbeat_interval, orphan_threshold)
  end

  def monitor(**settings)
    PatientHttp::Sidekiq::TaskMonitor.new(config(**settings))
  end
end

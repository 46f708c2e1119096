# frozen_string_literal: true

require "rbconfig"
require "sidekiq"
require "support/observing"

# A Sidekiq process with the application of the specs (application/app.rb), started by the executable of the Sidekiq that is loaded.
class ApplicationProcess
  include Observing

  APPLICATION = File.expand_path("application/app.rb", __dir__)
  LIB = File.expand_path("../../lib", __dir__)
  # How long Sidekiq lets its jobs go on after TERM, in s; more than the application's requests get.
  TIMEOUT = 10
  # How long it may take to start or to end, on a machine under load, in s.
  LIMIT = 40
  COMMAND = [RbConfig.ruby, "-I", LIB, Gem.bin_path("sidekiq", "sidekiq"), "-r", APPLICATION, "-c", "5", "-t", TIMEOUT.to_s].freeze
  # Outside a test suite, where the registry's clock and the limits are those of production.
  ENVIRONMENT = {"REDIS_PROVIDER" => nil, "RAILS_ENV" => nil, "RACK_ENV" => "production", "APP_ENV" => nil}.freeze
  private_constant :APPLICATION, :LIB, :TIMEOUT, :LIMIT, :COMMAND, :ENVIRONMENT

  attr_reader :pid

  # @param redis [RedisServer]
  # @param server [AnsweringServer] whom its jobs ask
  # @param log [String] a path
  # @param dies_after [Integer, nil] it kills itself when it has written down so many answers
  def initialize(redis, server, log, dies_after: nil)
    @log = log
    theirs, @leash = IO.pipe
    env = ENVIRONMENT.merge("REDIS_URL" => redis.url, "ANSWERING_PORT" => server.port.to_s,
      "DIES_AFTER" => dies_after&.to_s)
    @pid = Process.spawn(env, *COMMAND, in: theirs, out: log, err: %i[child out], pgroup: true)
    theirs.close
  end

  # @param registry_id [String] or a process id
  # @return [Boolean] whether it is this process's
  def own?(registry_id)
    registry_id.split(":")[1] == pid.to_s
  end

  # @return [ApplicationProcess] self, when it takes requests
  def booted
    eventually(within: LIMIT) { ended? || booted? }
    booted? && !ended? ? self : raise("it did not start:\n#{log}")
  end

  # Returns when it takes no more.
  def quiet
    signal(:TSTP)
    eventually(within: LIMIT) { log.include?("The processor takes no more") } || raise("it is not quiet:\n#{log}")
  end

  # @return [Process::Status]
  def terminate
    signal(:TERM)
    eventually(within: LIMIT) { ended? } || raise("it does not end:\n#{log}")
    @status
  end

  def signal(name)
    Process.kill(name, pid)
  end

  # Returns when it stands still: until then it may go on taking jobs.
  def stop
    signal(:STOP)
    Process.wait(pid, Process::WUNTRACED)
  end

  # However it is at the moment.
  def kill
    return if ended?

    signal(:KILL)
    _, @status = Process.wait2(pid)
    @leash.close
  end

  def ended?
    return true if @status

    _, @status = Process.wait2(pid, Process::WNOHANG)
    @leash.close if @status
    !@status.nil?
  end

  # @return [Array<String>] the paths of the requests that it gave back to Sidekiq
  def given_back
    log.scan(/Given back: (\S+)/).flatten
  end

  # @return [String]
  def log
    File.read(@log, encoding: "UTF-8").scrub
  end

  private

  def booted?
    log.include?("The application has started")
  end
end

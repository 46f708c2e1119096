# frozen_string_literal: true

# What the specs look at from outside: the clock, the server's list of clients, the pool's own count.
module Observing
  # @return [Float] how long the block took, in s
  def seconds
    started = monotonic
    yield
    monotonic - started
  end

  # Asks again until the block answers true, for as long as a machine under load may need.
  #
  # @return [Object] what the block answered last
  def eventually(within: 10)
    deadline = monotonic + within
    loop do
      answer = yield
      return answer if answer || monotonic > deadline

      sleep 0.01
    end
  end

  # @return [Exception, nil] what the block raised, whatever it is
  def raised
    yield
    nil
  rescue Exception => error # rubocop:disable Lint/RescueException -- interrupts are looked at too
    error
  end

  # Everything that an exception shows, and those behind it.
  def text_of(error)
    return "" unless error

    [error.message, error.inspect, error.detailed_message, error.full_message(highlight: false), text_of(error.cause)].join("\n")
  end

  # The clients of a server, each as name to value, without the one that asks.
  #
  # @param server [RedisServer]
  def clients_of(server)
    own = server.call("CLIENT", "ID").to_s
    server.call("CLIENT", "LIST").lines
      .map { |line| line.split.to_h { |field| field.split("=", 2) } }
      .reject { |client| client["id"] == own }
  end

  # @param sidekiq_pool [ConnectionPool]
  # @return [Array(Integer, Integer)] how many connections ours holds, and how many of them are idle
  def pool_counts(sidekiq_pool)
    PatientHttpMonitor.const_get(:Pools).for(sidekiq_pool).counts
  end

  private

  def monotonic
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end

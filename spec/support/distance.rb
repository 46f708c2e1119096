# frozen_string_literal: true

require "rbconfig"

# The wire to a server that is some way off. A process of its own delays what goes there and back, so that the process under test
# has no part in that work.
class Distance
  PROGRAM = <<~RUBY
    require "support/wire_proxy"
    target, round_trip = ARGV
    WireProxy.open(Integer(target)) do |proxy|
      proxy.delay(Float(round_trip) / 2)
      puts proxy.port
      $stdout.flush
      $stdin.read
    end
  RUBY
  private_constant :PROGRAM

  class << self
    # @param target [Integer] the server's port on this host
    # @param round_trip [Float] there and back, in s
    # @yieldparam url [String] of the far end
    def open(target, round_trip: 0.001)
      command = [RbConfig.ruby, "-I", File.expand_path("..", __dir__), "-e", PROGRAM, target.to_s, round_trip.to_s]
      # It ends when its input does, also that of a process that was killed.
      IO.popen(command, "r+") { |process| yield "redis://127.0.0.1:#{Integer(process.gets)}/0" }
    end
  end
end

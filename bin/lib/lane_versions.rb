# frozen_string_literal: true

# Tells in one line what a lane (see bin/lane) runs, by what it loads. Exits with 1 where that is not what the lane asks for.

require "async" unless ENV.key?("LANE_WITHOUT_ASYNC")
require "sidekiq"
require "redis-client"
require "connection_pool"
require "rack"
require "json"

wanted = Gem::Requirement.new(ENV.fetch("LANE_SIDEKIQ"))
loaded = Gem::Version.new(Sidekiq::VERSION)
abort "Sidekiq #{loaded} was loaded, which is not #{wanted}" unless wanted.satisfied_by?(loaded)

versions = {
  "Ruby" => RUBY_VERSION, "Sidekiq" => Sidekiq::VERSION, "redis-client" => RedisClient::VERSION,
  "connection_pool" => ConnectionPool::VERSION, "rack" => Rack.release, "json" => JSON::VERSION,
  "async" => (Async::VERSION if defined?(Async))
}.compact
puts versions.map { |name, version| "#{name} #{version}" }.join(", ")

# frozen_string_literal: true

# Tells in one line what a lane (see bin/lane) runs, by what it loads. Exits with 1 where that is not what the lane asks for.
#
#   ruby bin/lib/lane_versions.rb GEM...

FURTHER = {
  "async" => -> { Async::VERSION }, "rails" => -> { Rails.version }, "puma" => -> { Puma::Const::VERSION }
}.freeze

ARGV.each { |name| require name }
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
  "connection_pool" => ConnectionPool::VERSION, "rack" => Rack.release, "json" => JSON::VERSION
}
ARGV.each { |name| versions[name] = FURTHER.fetch(name).call }
puts versions.map { |name, version| "#{name} #{version}" }.join(", ")

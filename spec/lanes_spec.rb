# frozen_string_literal: true

require "spec_helper"
require "support/fleet"
require "support/ruby_process"

# With another set of gems (bin/lane) the specs prove something only where the processes that they start have the same.
RSpec.describe "Sidekiq's gems" do
  include RubyProcess
  include_context "with a fleet"

  let(:names) { %w[sidekiq redis-client connection_pool rack] }
  let(:versions) { Gem.loaded_specs.slice(*names).transform_values { |gem| gem.version.to_s } }

  it "are the same in a process that runs Ruby code" do
    outcome = ruby(<<~RUBY, env: {"REDIS_URL" => REDIS.url})
      require "patient_http_monitor"
      require "rack"
      puts JSON.generate(Gem.loaded_specs.transform_values { |gem| gem.version.to_s })
    RUBY
    expect(JSON.parse(outcome.output)).to include(versions), outcome.to_s
    expect(versions.keys).to match_array(names)
  end

  it "are the same in a process of a fleet" do
    expect(member.call("gems")).to include(versions)
  end
end

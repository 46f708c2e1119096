# frozen_string_literal: true

# RUBYOPT loads this into each Ruby process of a lane that runs without Bundler (see bin/lane), so that the processes that the specs
# start run with the same gems. A gem that is activated now is the one that every later `require` finds.
if defined?(Gem)
  begin
    gem "sidekiq", ENV.fetch("LANE_SIDEKIQ")
  rescue Gem::LoadError => error
    abort error.message
  end
end

# frozen_string_literal: true

namespace :soak do
  desc "Sweeps over registries of up to a million entries, as a table (minutes); the redis-server on PATH is the one measured"
  task sweeps: :compile do
    sh({"SOAK" => "1"}, RbConfig.ruby, "-S", "rspec", "spec/faults/large_sweeps_spec.rb", "--order", "defined")
  end
end

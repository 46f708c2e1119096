# frozen_string_literal: true

namespace :soak do
  soak = ->(*arguments) { sh({"SOAK" => "1"}, RbConfig.ruby, "-S", "rspec", *arguments) }

  desc "Sweeps over registries of up to a million entries, as a table (minutes); the redis-server on PATH is the one measured"
  task sweeps: :compile do
    soak.call("spec/faults/large_sweeps_spec.rb", "--order", "defined")
  end

  desc "200,000 calls interrupted at random, over plain TCP and over TLS each, and 20,000 in fibers (minutes)"
  task interrupts: :compile do
    soak.call("spec/interrupts/random_spec.rb")
  end

  desc "The memory of a process over a million requests (minutes)"
  task memory: :compile do
    soak.call("spec/memory_spec.rb")
  end
end

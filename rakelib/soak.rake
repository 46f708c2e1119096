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

  desc "Whole Sidekiq processes under load: ten times as many requests, restarts, deaths and outages (minutes)"
  task application: :compile do
    sh({"SOAK" => "1"}, "bin/lane", "sidekiq-8.1", "rspec", "spec/application")
  end

  desc "The contract and the recoveries with a garbage collection at every allocation of a native method (hours)"
  task gc_stress: :compile do
    soak.call("-r", "support/gc_stress", "spec/contract", "spec/later", "spec/recovery", "spec/gc_stress_spec.rb")
  end

  desc "A short run of all that there is under valgrind, without errors of ours (minutes; valgrind must be there)"
  task valgrind: :compile do
    soak.call("spec/memcheck_spec.rb")
  end
end

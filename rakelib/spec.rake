# frozen_string_literal: true

require "rspec/core/rake_task"

RSpec::Core::RakeTask.new(:spec)
Rake::Task["spec"].enhance(["compile"])

desc "Faults injected into real processes, clocks and connections (minutes); the clocks need libfaketime"
task faults: :compile do
  ruby "-S", "rspec", *Dir["spec/faults/*_spec.rb"]
end

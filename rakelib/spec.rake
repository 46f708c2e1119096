# frozen_string_literal: true

require "rspec/core/rake_task"

RSpec::Core::RakeTask.new(:spec)
Rake::Task["spec"].enhance(["compile"])

desc "Of the specs those that inject faults into real processes, clocks and connections, with their figures"
RSpec::Core::RakeTask.new(faults: :compile) do |task|
  task.pattern = "spec/faults/**/*_spec.rb"
end

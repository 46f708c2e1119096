# frozen_string_literal: true

desc "Warnings, signatures and documentation of the Ruby code"
task lint: %i[warnings signatures documentation]

desc "Fail on whatever ruby -w has to say about a file"
task :warnings do
  files = FileList["lib/**/*.rb", "ext/**/extconf.rb", "spec/**/*.rb", "examples/**/*.rb", "bench/**/*.rb", "rakelib/*.{rake,rb}",
    "Rakefile", "Gemfile", "*.gemspec"]
  complaints = files.reject do |file|
    IO.popen([RbConfig.ruby, "-wc", file], err: %i[child out], &:read) == "Syntax OK\n"
  end
  abort "ruby -wc has something to say about #{complaints.join(", ")}" if complaints.any?
end

desc "Validate the signatures in sig/"
task :signatures do
  # By its file: a distribution's package may lack the executable on PATH.
  ruby Gem.bin_path("rbs", "rbs"), "-I", "sig", "validate", verbose: false
end

desc "Fail when a public constant or method has no YARD documentation"
task :documentation do
  report = IO.popen([RbConfig.ruby, Gem.bin_path("yard", "yard"), "stats", "--list-undoc", "--no-cache", "--no-save"], err: %i[child out], &:read)
  puts report
  abort "documentation is missing, see above" unless report.include?("100.00% documented") && !report.include?("[warn]")
end

# frozen_string_literal: true

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

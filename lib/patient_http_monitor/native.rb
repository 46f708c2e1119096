# frozen_string_literal: true

# A precompiled gem carries one library for each minor version of Ruby; a gem built on this machine carries one for this Ruby.
begin
  require "patient_http_monitor/#{RUBY_VERSION[/\A\d+\.\d+/]}/patient_http_monitor"
rescue LoadError => error
  raise unless error.path.to_s.start_with?("patient_http_monitor/")

  require "patient_http_monitor/patient_http_monitor"
end

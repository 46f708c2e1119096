# frozen_string_literal: true

require "mkmf"

begin
  require "rb_sys/mkmf"
rescue LoadError
  abort "patient_http_monitor: the gem rb_sys is missing, which builds its Rust code. Install it: gem install rb_sys"
end

unless find_executable("cargo")
  abort "patient_http_monitor: cargo is missing. The gem is built from Rust source and needs Rust >= 1.88 (https://rustup.rs)."
end

libclang = "{/usr/lib/llvm-*/lib,/usr/lib/*,/usr/lib64,/usr/lib64/llvm*/lib,/opt/homebrew/opt/llvm/lib,/usr/local/opt/llvm/lib}/libclang*"
unless ENV["LIBCLANG_PATH"] || find_executable("llvm-config") || RUBY_PLATFORM.include?("darwin") || Dir.glob(libclang).any?
  abort "patient_http_monitor: libclang is missing, with which rb-sys reads Ruby's headers. " \
    "Install it (Debian: apt-get install libclang-dev; Fedora: dnf install clang-devel) or set LIBCLANG_PATH."
end

create_rust_makefile("patient_http_monitor/patient_http_monitor") do |builder|
  builder.extra_cargo_args += ["--locked"]
end

# frozen_string_literal: true

require "spec_helper"
require "support/certificates"
require "support/memcheck"

# `rake soak:valgrind`; elsewhere it would have to build the extension a second time.
RSpec.describe "The extension under valgrind", if: ENV["SOAK"] do
  before(:context) do
    Memcheck.missing&.then { |text| raise text }
    @dir = Dir.mktmpdir("patient_http_monitor")
    authority = Certificates.new(@dir, "authority")
    certificate, key = authority.issue("server", "DNS:localhost")
    @tls_port = RedisServer.free_port
    @server = RedisServer.start(tls_port: @tls_port, tls_cert_file: certificate, tls_key_file: key,
      tls_ca_cert_file: authority.ca_file, tls_auth_clients: "no")
    @ca_file = authority.ca_file
  end

  after(:context) do
    @server&.stop
    FileUtils.rm_rf(@dir) if @dir
  end

  it "reads and writes no memory that is not its own or was never set" do
    memcheck = Memcheck.new
    errors = memcheck.errors(memcheck.build, "PLAIN_URL" => @server.url, "TLS_URL" => "rediss://localhost:#{@tls_port}", "CA_FILE" => @ca_file,
      "NOBODY_URL" => "redis://127.0.0.1:#{RedisServer.free_port}", "SERVER_PID" => @server.pid.to_s)
    expect(errors).to be_empty, -> { "#{errors.size} errors of ours, the first of them:\n#{errors.first(3).join("\n")}" }
  end
end

# The control of the example above: it finds errors only where these are told apart.
RSpec.describe Memcheck do
  library = "/tmp/memcheck/lib/patient_http_monitor/#{Memcheck::LIBRARY}"
  ruby = "/usr/lib/libruby.so.3.3"
  libc = "/usr/lib/libc.so.6"
  malloc = "/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so"

  # @param address [String] what is known of it
  # @param stacks [Array<Array<String>>] the objects of each, the innermost first
  def error(kind, what, address, *stacks)
    texts = stacks.map do |objects|
      "<stack>\n#{objects.map { |object| "<frame>\n<ip>0x1</ip>\n<obj>#{object}</obj>\n<fn>f</fn>\n</frame>" }.join("\n")}\n</stack>"
    end
    texts.insert(1, "<auxwhat>Address 0x1 is #{address}</auxwhat>")
    "<error>\n<unique>0x1</unique>\n<tid>1</tid>\n<kind>#{kind}</kind>\n<what>#{what}</what>\n#{texts.join("\n")}\n</error>"
  end

  def reported(*reports)
    Dir.mktmpdir("memcheck") do |dir|
      reports.each_with_index do |errors, number|
        File.write(File.join(dir, "#{number}.xml"), "<valgrindoutput>\n#{errors.join("\n")}\n</valgrindoutput>\n")
      end
      described_class.new(dir).of_ours(dir)
    end
  end

  block = "0 bytes after a block of size 64 alloc'd"
  write = ["InvalidWrite", "Invalid write of size 8"]
  value = ["UninitCondition", "Conditional jump or move depends on uninitialised value(s)", "unknown"]
  {
    "an invalid write of the extension" => [*write, block, [library, ruby]],
    "an invalid write that the extension makes by libc" => [*write, block, [malloc, libc, library, ruby]],
    "an invalid write of Ruby's into a block of the heap that the extension made" =>
      [*write, block, [ruby, library, ruby], [malloc, library]],
    "a value of the extension's memory that nobody has set" => [*value, [ruby], [malloc, library, ruby]]
  }.each do |title, seeded|
    it "tells of #{title}" do
      expect(reported([error(*seeded)])).to contain_exactly(start_with(seeded[1]))
    end
  end

  {
    "an invalid write of Ruby's" => [*write, "not stack'd, malloc'd or (recently) free'd", [ruby, library]],
    "an invalid write of the extension on a thread's stack" => [*write, "on thread 1's stack", [library, ruby]],
    "a leak" => ["Leak_DefinitelyLost", "64 bytes in 1 blocks are definitely lost", "unknown", [malloc, library]],
    "a value of Ruby's memory that nobody has set" => [*value, [library, ruby], [malloc, ruby, library]],
    "a value of unknown origin that nobody has set" => [*value, [library, ruby]]
  }.each do |title, seeded|
    it "says nothing of #{title}" do
      expect(reported([error(*seeded)])).to be_empty
    end
  end

  it "finds them in the report of each process, with where they happened" do
    of_ruby = error(*write, "unknown", [ruby])
    found = reported([of_ruby], [error(*write, "unknown", [library, ruby]), of_ruby])
    expect(found).to eq(["Invalid write of size 8\n    f (patient_http_monitor.so)\n    f (libruby.so.3.3)\nAddress 0x1 is unknown"])
  end

  it "is content with a report without errors, and not with none" do
    expect(reported([])).to be_empty
    expect { reported }.to raise_error(/no report/)
  end
end

# frozen_string_literal: true

require "openssl"

# A certificate authority of the suite's own, and what it signs, as files.
class Certificates
  # How long they hold, in s.
  LIFETIME = 3_600

  attr_reader :ca_file

  # @param dir [String] a folder that exists
  # @param name [String] of the authority
  def initialize(dir, name)
    @dir = dir
    @name = OpenSSL::X509::Name.new([["CN", name]])
    @key = OpenSSL::PKey::EC.generate("prime256v1")
    @serial = 1
    @certificate = build(@name, @key) do |certificate, extensions|
      certificate.add_extension(extensions.create_extension("basicConstraints", "CA:TRUE", true))
      certificate.add_extension(extensions.create_extension("keyUsage", "keyCertSign, cRLSign", true))
    end
    @ca_file = write("#{name}.ca.crt", @certificate.to_pem)
  end

  # @param name [String] becomes the file's name
  # @param alternative_names [String] whom it is for: "DNS:localhost, IP:127.0.0.1"
  # @return [Array(String, String)] the files of certificate and key
  def issue(name, alternative_names)
    key = OpenSSL::PKey::EC.generate("prime256v1")
    certificate = build(OpenSSL::X509::Name.new([["CN", name]]), key) do |unsigned, extensions|
      unsigned.add_extension(extensions.create_extension("subjectAltName", alternative_names))
    end
    [write("#{name}.crt", certificate.to_pem), write("#{name}.key", key.private_to_pem)]
  end

  private

  def build(subject, key)
    certificate = OpenSSL::X509::Certificate.new
    certificate.version = 2
    certificate.serial = (@serial += 1)
    certificate.subject = subject
    certificate.issuer = @name
    certificate.public_key = key
    certificate.not_before = Time.now - LIFETIME
    certificate.not_after = Time.now + LIFETIME
    extensions = OpenSSL::X509::ExtensionFactory.new
    extensions.subject_certificate = certificate
    extensions.issuer_certificate = @certificate || certificate
    yield certificate, extensions
    certificate.sign(@key, OpenSSL::Digest.new("SHA256"))
  end

  def write(name, text)
    File.join(@dir, name).tap { |path| File.write(path, text) }
  end
end

# Install rules: headers, find_package(brgemm), pkg-config.
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(TARGETS brgemm EXPORT brgemm)  # brgemm::libxsmm is made by the package's config file, where LIBXSMM is

set(brgemm_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/brgemm)
install(EXPORT brgemm NAMESPACE brgemm:: FILE brgemm-targets.cmake DESTINATION ${brgemm_package_dir})
if(TARGET brgemm_cuda)  # the only part that is compiled
  install(TARGETS brgemm_cuda EXPORT brgemm-cuda ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT brgemm-cuda NAMESPACE brgemm:: FILE brgemm-cuda-targets.cmake DESTINATION ${brgemm_package_dir})
endif()
configure_package_config_file(cmake/brgemm-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/brgemm-config.cmake
                              INSTALL_DESTINATION ${brgemm_package_dir})
set(brgemm_any_architecture ARCH_INDEPENDENT)
if(TARGET brgemm_cuda)
  set(brgemm_any_architecture)
endif()
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/brgemm-config-version.cmake
                                 COMPATIBILITY SameMinorVersion ${brgemm_any_architecture})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/brgemm-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/brgemm-config-version.cmake
              cmake/FindXbyak.cmake cmake/FindLibxsmm.cmake
        DESTINATION ${brgemm_package_dir})

configure_file(cmake/brgemm.pc.in ${CMAKE_CURRENT_BINARY_DIR}/brgemm.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/brgemm.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
